//! Why a runtime cannot be had, or does not run a model.

use std::path::PathBuf;

/// What an error about a missing ONNX Runtime adds in a build that has no tract to fall back to.
const IN_ITS_PLACE: &str = if cfg!(feature = "tract") {
    ""
} else {
    ", and this gqa2mla is built without tract, which runs simple models in its place"
};

/// Why a model could not be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No ONNX Runtime anywhere on this machine.
    #[error(
        "ONNX Runtime was not found (looked in {looked_in}){IN_ITS_PLACE}. Install it with: pip install onnxruntime==1.32.0"
    )]
    NotFound {
        /// Places that were searched, in order.
        looked_in: String,
    },
    /// The library that was asked for is missing, is not ONNX Runtime or is too old.
    #[error("{origin} names {}, which cannot be used as ONNX Runtime: {reason}", path.display())]
    BadLibrary {
        /// The library or folder.
        path: PathBuf,
        /// Who named it: an option, a variable or the search.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// tract was asked for, and this build has none.
    #[error(
        "this gqa2mla is built without tract: choose ONNX Runtime (--runtime ort), or build it with the feature `tract`"
    )]
    WithoutTract,
    /// A process can hold one ONNX Runtime, and it holds another one.
    #[error("cannot load ONNX Runtime from {}: this process already uses {}", asked.display(), loaded.display())]
    AlreadyLoaded {
        /// The library in use.
        loaded: PathBuf,
        /// The library that was asked for.
        asked: PathBuf,
    },
    /// The device that was asked for cannot run this model.
    #[error("{} cannot run on {provider}: {reason}", model.display())]
    Provider {
        /// The model file.
        model: PathBuf,
        /// The device.
        provider: &'static str,
        /// The runtime's words.
        reason: String,
    },
    /// The runtime refuses the model.
    #[error("{runtime} cannot load {}: {reason}", model.display())]
    Load {
        /// The model file.
        model: PathBuf,
        /// The runtime.
        runtime: &'static str,
        /// The runtime's words.
        reason: String,
    },
    /// The runtime failed while running the model.
    #[error("{runtime} cannot run {}: {reason}", model.display())]
    Run {
        /// The model file.
        model: PathBuf,
        /// The runtime.
        runtime: &'static str,
        /// The runtime's words, which name the node where it knows it.
        reason: String,
    },
    /// A value has an element type that language models' interfaces do not use, or that the runtime lacks.
    #[error("value {name} has element type {element}, which {runtime} cannot exchange here")]
    ElementType {
        /// The input or output.
        name: String,
        /// Its type.
        element: String,
        /// The runtime.
        runtime: &'static str,
    },
    /// An input whose declared shape is too large to be generated.
    #[error("input {name} of shape {shape:?} is too large to be made up: check its declared shape")]
    TooLarge {
        /// The input.
        name: String,
        /// The shape it would need.
        shape: Vec<usize>,
    },
    /// A tensor's elements are not as many as its shape holds.
    #[error("a tensor of shape {shape:?} cannot hold {elements} elements")]
    ElementCount {
        /// The shape.
        shape: Vec<usize>,
        /// The elements given.
        elements: usize,
    },
}

/// The message of a panic that was caught in a runtime.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it panicked".to_owned())
}
