//! Validation of a rewrite: the original and the rewritten model run through the same scenarios, each with its own
//! caches, and their logits are compared at every position.

pub mod cache;
pub mod compare;
mod error;
pub mod feed;
mod from_graph;
mod greedy;
pub mod interface;
mod lockstep;
mod pairing;
pub mod port;
pub mod ports;
pub mod prompt;
pub mod proof;
pub(crate) mod roles;
pub mod runner;
pub mod scenario;
mod undeclared;

pub use error::{ValidateError, Which};
pub use greedy::greedy;
pub use lockstep::{ValidateOptions, validate};
