//! Models on disk: read without copying weights, written whole or not at all.

mod copy;
pub mod foreign;
pub mod identity;
pub mod interrupted;
pub mod load;
mod location;
pub mod mapped;
pub mod save;
pub mod tensors;
