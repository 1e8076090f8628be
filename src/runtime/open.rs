//! Selection of the runtime, and opening of models in it.

use std::path::Path;

use crate::runtime::error::RuntimeError;
use crate::runtime::library::Used;
use crate::runtime::session::{Provider, RuntimeKind, RuntimeOptions, Session};
#[cfg(feature = "tract")]
use crate::runtime::tract;
use crate::runtime::{library, locate, ort};

/// Opens a model file with its external data.
///
/// # Errors
/// [`RuntimeError`] if no runtime is available, or it cannot load the model.
pub fn open(model: &Path, options: &RuntimeOptions) -> Result<Box<dyn Session>, RuntimeError> {
    if options.runtime == RuntimeKind::Tract {
        return open_tract(model, options);
    }
    match ort::open(model, None, options) {
        Ok(session) => Ok(Box::new(session)),
        // tract is the fallback only if ONNX Runtime is not installed. If a named library or device does not work, that
        // is an error; otherwise a validation could pass in another runtime than intended.
        Err(RuntimeError::NotFound { .. })
            if cfg!(feature = "tract")
                && options.runtime == RuntimeKind::Auto
                && options.provider == Provider::Cpu =>
        {
            open_tract(model, options)
        }
        Err(error) => Err(error),
    }
}

/// Opens a model file in ONNX Runtime, for runs with bound inputs and outputs.
///
/// # Errors
/// [`RuntimeError`] if ONNX Runtime is not available, or cannot load the model.
pub fn open_ort(model: &Path, options: &RuntimeOptions) -> Result<ort::OrtSession, RuntimeError> {
    ort::open(model, None, options)
}

/// Opens `messages`, an encoded model, in ONNX Runtime, with the data files of the model file `model`.
///
/// # Errors
/// [`RuntimeError`] if ONNX Runtime is not available, or cannot load the model.
pub fn open_messages(
    messages: &[u8],
    model: &Path,
    options: &RuntimeOptions,
) -> Result<Box<dyn Session>, RuntimeError> {
    Ok(Box::new(ort::open(model, Some(messages), options)?))
}

/// The ONNX Runtime that [`open`] uses by default; it is loaded.
///
/// # Errors
/// [`RuntimeError::NotFound`] if there is none; [`RuntimeError::BadLibrary`] if it cannot be loaded.
pub fn version() -> Result<Used, RuntimeError> {
    let located = locate::locate(None, &locate::Surroundings::of_process())?;
    let (_, version) = library::load(&located, false)?;
    Ok(Used {
        version,
        path: located.path,
        origin: located.origin,
    })
}

fn open_tract(model: &Path, options: &RuntimeOptions) -> Result<Box<dyn Session>, RuntimeError> {
    if options.provider == Provider::Cuda {
        return Err(RuntimeError::Provider {
            model: model.to_path_buf(),
            provider: "CUDA",
            reason: "tract is built for the processor only; choose ONNX Runtime".to_owned(),
        });
    }
    #[cfg(feature = "tract")]
    return Ok(Box::new(tract::TractSession::open(model, options)?));
    #[cfg(not(feature = "tract"))]
    Err(RuntimeError::WithoutTract)
}
