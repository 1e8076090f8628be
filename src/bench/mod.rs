//! Benchmarks of several models: the times of decode steps and prefills, and the memory.
//!
//! The speed of a machine varies during a measurement. Each round therefore runs every model once, and ratios compare
//! runs of the same round.

mod error;
pub mod memory;
mod model;
mod phase;
mod rounds;
mod shared;
pub mod spread;

pub use error::BenchError;
pub use phase::{BenchRequest, Io, Phase};
pub use rounds::{Benched, Measured, Ran, Timing, bench};
