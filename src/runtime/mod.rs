//! Running a model file: one trait, two runtimes.
//!
//! ONNX Runtime is what serves models, so it is what proofs should be run in; it is loaded at run time from wherever
//! the machine has it. tract is built in and runs simple graphs where ONNX Runtime is not installed.

mod library;
pub mod locate;
mod ort;
pub mod tensor;
mod tract;

use std::path::{Path, PathBuf};

use tensor::Tensor;

pub use library::Used;

/// A loaded model that can be run.
pub trait Session {
    /// Runs the model once. Inputs are given by name, in any order; every output of the model is returned, in the
    /// model's order. Nothing is kept between runs: caches are ordinary inputs and outputs.
    ///
    /// # Errors
    /// [`RuntimeError::Run`] with the runtime's own words, [`RuntimeError::ElementType`] for outputs of a type that
    /// [`tensor::Data`] cannot hold.
    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RuntimeError>;

    /// The runtime, its version and its settings in one line, such as `ONNX Runtime 1.32.0, CPU, optimizations off`.
    fn describe(&self) -> String;
}

/// Which runtime to run a model in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RuntimeKind {
    /// ONNX Runtime where it is installed, else tract.
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
    /// The ONNX Runtime library or a folder that has it; none looks in the usual places, see [`locate::locate`].
    pub onnxruntime: Option<PathBuf>,
    /// Which device.
    pub provider: Provider,
    /// Whether the runtime may rewrite the graph before running it. Off for proofs: a runtime's optimizer could repair
    /// or hide a wrong graph.
    pub optimize: bool,
    /// Threads one operator may use; 0 leaves it to the runtime. tract uses one.
    pub threads: usize,
}

/// Why a model could not be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No ONNX Runtime anywhere on this machine.
    #[error(
        "ONNX Runtime was not found (looked in {looked_in}). Install it with: pip install onnxruntime==1.32.0"
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
    /// An input that no machine could hold.
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

/// Opens a model file, with external data relative to it.
///
/// # Errors
/// [`RuntimeError`] when no runtime can be had, or the runtime refuses the model.
pub fn open(model: &Path, options: &RuntimeOptions) -> Result<Box<dyn Session>, RuntimeError> {
    if options.runtime == RuntimeKind::Tract {
        return open_tract(model, options);
    }
    match ort::open(model, None, options) {
        Ok(session) => Ok(Box::new(session)),
        // Only a machine without ONNX Runtime falls back: a library or device that was named and does not work is an
        // error, or a check could pass in another runtime than the one it was meant for.
        Err(RuntimeError::NotFound { .. })
            if options.runtime == RuntimeKind::Auto && options.provider == Provider::Cpu =>
        {
            open_tract(model, options)
        }
        Err(error) => Err(error),
    }
}

/// Opens `messages`, an encoded model, in ONNX Runtime, as if they stood in the file `model`: its data files are used.
///
/// # Errors
/// [`RuntimeError`] when ONNX Runtime cannot be had, or refuses the model.
pub fn open_messages(
    messages: &[u8],
    model: &Path,
    options: &RuntimeOptions,
) -> Result<Box<dyn Session>, RuntimeError> {
    Ok(Box::new(ort::open(model, Some(messages), options)?))
}

/// The ONNX Runtime that [`open`] would use; it is loaded for that.
///
/// # Errors
/// [`RuntimeError::NotFound`] where there is none; [`RuntimeError::BadLibrary`] where it cannot be loaded.
pub fn version() -> Result<Used, RuntimeError> {
    let located = locate::locate(None, &locate::Surroundings::of_process())?;
    let (_, version) = library::load(&located, false)?;
    Ok(Used {
        version,
        path: located.path,
        origin: located.origin,
    })
}

/// The ONNX Runtime that models of this process have run in, if any did.
#[must_use]
pub fn used() -> Option<Used> {
    library::used()
}

fn open_tract(model: &Path, options: &RuntimeOptions) -> Result<Box<dyn Session>, RuntimeError> {
    if options.provider == Provider::Cuda {
        return Err(RuntimeError::Provider {
            model: model.to_path_buf(),
            provider: "CUDA",
            reason: "tract is built for the processor only; choose ONNX Runtime".to_owned(),
        });
    }
    Ok(Box::new(tract::TractSession::open(model, options)?))
}

/// The message of a panic that was caught in a runtime.
fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it panicked".to_owned())
}
