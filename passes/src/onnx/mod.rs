//! The protobuf messages of an ONNX file, as the ONNX IR specification defines them at IR 14.
//!
//! One declaration for each message, field and enumeration of `onnx-ml.proto` of onnx 1.23.2, with its name and number.
//!
//! The definition is proto2, whose fields may be present and equal to their default: `Option` keeps such a field
//! through reading and writing, and the accessor of the same name gives the default where it is missing. "Required"
//! below means required by the specification; it is not enforced here. Enumerations are kept as integers, so that a
//! value newer than IR 14 survives; fields newer than IR 14 do not. Repeated numbers are packed where the definition
//! says so, and read in either form. `bytes` fields are [`bytes::Bytes`]: decoding from a mapped file shares its pages
//! and copies no weights.

mod devices;
mod graph;
mod model;
pub mod stored;
mod tensor;
mod types;

pub use devices::*;
pub use graph::*;
pub use model::*;
pub use tensor::*;
pub use types::*;
