//! Running a model file: one trait, two runtimes.
//!
//! ONNX Runtime is what serves models, so it is what proofs should be run in; it is loaded at run time from wherever
//! the machine has it. tract is built in, unless the feature `tract` is off, and runs simple graphs where ONNX Runtime
//! is not installed.

mod bound;
mod error;
pub mod given;
mod library;
pub mod locate;
mod open;
mod ort;
mod session;
pub mod tensor;
#[cfg(feature = "tract")]
mod tract;

pub use bound::BoundRun;
pub use error::RuntimeError;
pub use library::{Used, used};
pub use open::{open, open_messages, open_ort, version};
pub use ort::OrtSession;
pub use session::{Provider, RuntimeKind, RuntimeOptions, Session};
