//! Running of model files: one trait, two runtimes.
//!
//! ONNX Runtime is what serves models in production, so validation should use it; its shared library is loaded at run
//! time. tract is built in, unless the feature `tract` is off, and runs simple graphs if ONNX Runtime is not installed.

mod aborted;
mod bound;
mod error;
pub mod given;
pub mod host;
mod library;
pub mod locate;
mod open;
mod ort;
mod placement;
mod rows;
mod session;
mod telemetry;
pub mod tensor;
#[cfg(feature = "tract")]
mod tract;

pub use aborted::report_aborts;
pub use bound::BoundRun;
pub use error::RuntimeError;
pub use library::{Used, used};
pub use open::{open, open_messages, open_ort, version};
pub use ort::OrtSession;
pub use session::{Provider, RuntimeKind, RuntimeOptions, Session};
pub use telemetry::without_telemetry;
