//! From sites to patches: one file a target form.

pub mod absorbed;
mod builder;
pub mod decoupled;
pub mod expanded;
pub mod grouped;
mod names;
mod rotate;
mod tensors;
pub mod weights;

pub use names::Names;
pub use tensors::TensorRange;

use std::error::Error;

use crate::onnx::TensorProto;

/// The oldest opset whose operators the rewrite emits: `Unsqueeze` takes its axes as an input since 13.
pub const OLDEST_OPSET: i64 = 13;

/// Takes a new initializer and gives back what stands for it in the graph: the tensor itself, or a reference to
/// external data where the bytes were put. It lets one layer's factors leave memory before the next are made.
pub type Store<'s> =
    dyn FnMut(TensorProto) -> Result<TensorProto, Box<dyn Error + Send + Sync>> + 's;
