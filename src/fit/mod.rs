//! From text to factors: statistics, their factorization, and local reconstruction.

pub mod calibrate;
pub mod context;
pub mod factors;
pub mod layer_errors;
pub mod reach;
pub mod reconstruct;
pub mod rounding;
pub mod statistics;
