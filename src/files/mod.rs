//! Model files: memory-mapped reading and atomic writing.

pub(crate) mod copy;
pub(crate) mod data;
pub mod foreign;
pub mod foreseen;
pub mod identity;
pub mod interrupted;
pub mod load;
pub mod location;
mod lock;
pub mod mapped;
pub mod origin;
pub mod outputs;
mod place;
mod publish;
mod rejected;
pub mod save;
pub mod staging;
mod swap;
pub mod tensors;
