//! Models on disk: read without copying weights, written whole or not at all.

pub mod load;
mod location;
mod mapped;
pub mod save;
