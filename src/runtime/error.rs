//! The errors of runtimes.

use std::path::PathBuf;

/// Addition to the error of a missing ONNX Runtime in builds without tract.
const IN_ITS_PLACE: &str = if cfg!(feature = "tract") {
    ""
} else {
    ", and this gqa2mla is built without tract, which runs simple models in its place"
};

/// Why a model could not be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// ONNX Runtime was not found.
    #[error(
        "ONNX Runtime was not found (looked in {looked_in}){IN_ITS_PLACE}. Install it with: pip install onnxruntime==1.32.0"
    )]
    NotFound {
        /// The searched places, in order.
        looked_in: String,
    },
    /// The named library is missing, is not ONNX Runtime, or is too old.
    #[error("{origin} names {}, which cannot be used as ONNX Runtime: {reason}", path.display())]
    BadLibrary {
        /// The library or folder.
        path: PathBuf,
        /// The origin of the path: an option, a variable or the search.
        origin: String,
        /// The reason.
        reason: String,
    },
    /// tract was requested, but this build does not contain it.
    #[error(
        "this gqa2mla is built without tract: choose ONNX Runtime (--runtime ort), or build it with the feature `tract`"
    )]
    WithoutTract,
    /// The process has already loaded another ONNX Runtime; it can load only one.
    #[error("cannot load ONNX Runtime from {}: this process already uses {}", asked.display(), loaded.display())]
    AlreadyLoaded {
        /// The library in use.
        loaded: PathBuf,
        /// The requested library.
        asked: PathBuf,
    },
    /// The requested device cannot run this model.
    #[error("{} cannot run on {provider}: {reason}", model.display())]
    Provider {
        /// The model file.
        model: PathBuf,
        /// The device.
        provider: &'static str,
        /// The runtime's message.
        reason: String,
    },
    /// The runtime cannot load the model.
    #[error("{runtime} cannot load {}: {reason}", model.display())]
    Load {
        /// The model file.
        model: PathBuf,
        /// The runtime.
        runtime: &'static str,
        /// The runtime's message.
        reason: String,
    },
    /// The runtime failed while running the model.
    #[error("{runtime} cannot run {}: {reason}", model.display())]
    Run {
        /// The model file.
        model: PathBuf,
        /// The runtime.
        runtime: &'static str,
        /// The runtime's message.
        reason: String,
    },
    /// tract cannot load or run the model. This does not mean that the model is wrong, because tract supports only
    /// simple models.
    #[error("tract cannot run {}: {reason}. tract runs simple models only; ONNX Runtime runs the others: pip install onnxruntime==1.32.0", model.display())]
    Tract {
        /// The model file.
        model: PathBuf,
        /// tract's message.
        reason: String,
    },
    /// An input or output has an element type that is not supported here or by the runtime.
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
    /// The number of elements does not fit the shape of a tensor.
    #[error("a tensor of shape {shape:?} cannot hold {elements} elements")]
    ElementCount {
        /// The shape.
        shape: Vec<usize>,
        /// The number of elements.
        elements: usize,
    },
}

/// The message of a panic that was caught in a runtime.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it panicked".to_owned())
}
