//! How fast models run, and how much memory they take: decode steps and prefills of several models, in turns.
//!
//! The machine slows down and recovers while a measurement goes on. Every round therefore runs each model once, and a ratio
//! compares runs of the same round.

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
