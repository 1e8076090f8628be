//! A model opened in a runtime, and the options of opening it.

use std::path::PathBuf;

use crate::runtime::error::RuntimeError;
use crate::runtime::given::GivenInput;
use crate::runtime::tensor::Tensor;

/// A loaded model that can be run.
pub trait Session {
    /// Runs the model once. Inputs are given by name, in any order; every output of the model is returned, in the
    /// model's order. Nothing is kept between runs: caches are ordinary inputs and outputs.
    ///
    /// # Errors
    /// [`RuntimeError::Run`] with the runtime's own words, [`RuntimeError::ElementType`] for outputs of a type that
    /// [`crate::runtime::tensor::Data`] cannot hold.
    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RuntimeError>;

    /// The runtime, its version and its settings in one line, such as `ONNX Runtime 1.32.0, CPU, optimizations off`.
    fn describe(&self) -> String;
}

/// Which runtime to run a model in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RuntimeKind {
    /// ONNX Runtime where it is installed, else tract where it is built in.
    #[default]
    Auto,
    /// ONNX Runtime or an error.
    Ort,
    /// tract.
    Tract,
}

/// Which device ONNX Runtime computes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Provider {
    /// The processor.
    #[default]
    Cpu,
    /// The first CUDA device. Nodes that would fall back to the processor are an error.
    Cuda,
}

/// How to open a model.
#[derive(Debug, Clone, Default)]
pub struct RuntimeOptions {
    /// Which runtime.
    pub runtime: RuntimeKind,
    /// The ONNX Runtime library or a folder that has it; none looks in the usual places, see [`crate::runtime::locate::locate`].
    pub onnxruntime: Option<PathBuf>,
    /// Which device.
    pub provider: Provider,
    /// Whether the runtime may rewrite the graph before running it. Off for proofs: a runtime's optimizer could repair
    /// or hide a wrong graph.
    pub optimize: bool,
    /// Threads one operator may use; 0 leaves it to the runtime. tract uses one.
    pub threads: usize,
    /// Inputs that are the same in every run, in place of what validation makes of them.
    pub given: Vec<GivenInput>,
}
