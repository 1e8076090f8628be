//! The trait of opened models, and the options of runtimes.

use std::path::PathBuf;

use crate::runtime::error::RuntimeError;
use crate::runtime::given::GivenInput;
use crate::runtime::tensor::Tensor;

/// An opened model.
pub trait Session {
    /// Runs the model once. Inputs are given by name, in any order; all outputs of the model are returned, in the
    /// model's order. There is no state between runs: caches are ordinary inputs and outputs.
    ///
    /// # Errors
    /// [`RuntimeError::Run`] with the runtime's message, [`RuntimeError::ElementType`] for outputs of a type that
    /// [`crate::runtime::tensor::Data`] does not support.
    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RuntimeError>;

    /// The runtime, its version and its settings in one line, such as `ONNX Runtime 1.32.0, CPU, optimizations off`.
    fn describe(&self) -> String;
}

/// The choice of a runtime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RuntimeKind {
    /// ONNX Runtime if it is installed, else tract if it is built in.
    #[default]
    Auto,
    /// ONNX Runtime.
    Ort,
    /// tract.
    Tract,
}

/// The device of ONNX Runtime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Provider {
    /// The CPU.
    #[default]
    Cpu,
    /// The first CUDA device, with products in full fp32. It is an error if nodes with floating-point tensors run on the CPU.
    Cuda,
}

/// The options of a runtime.
#[derive(Debug, Clone, Default)]
pub struct RuntimeOptions {
    /// The runtime.
    pub runtime: RuntimeKind,
    /// The ONNX Runtime library or its folder; `None`: search, see [`crate::runtime::locate::locate`].
    pub onnxruntime: Option<PathBuf>,
    /// The device.
    pub provider: Provider,
    /// Whether the runtime may optimize the graph. Off for validation, because an optimizer could hide an error of the
    /// graph.
    pub optimize: bool,
    /// Number of threads per operator; 0: the runtime's default. tract uses one.
    pub threads: usize,
    /// Values for inputs, the same in every run, in place of generated ones.
    pub given: Vec<GivenInput>,
}
