//! Loads the ONNX Runtime library into this process, once.
//!
//! The `ort` crate panics when it is used before a library is loaded, so everything starts from an [`Environment`],
//! which only exists once loading has succeeded.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::logging::LogLevel;

use crate::runtime::error::{RuntimeError, panic_message};
use crate::runtime::locate::Located;

/// The loaded library. It is never unloaded, because ONNX Runtime does not support that safely, and the crate cannot
/// make a second environment.
struct Loaded {
    used: Used,
    environment: Environment,
}

/// The ONNX Runtime of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Its version.
    pub version: String,
    /// The library.
    pub path: PathBuf,
    /// The origin of the path, such as `ORT_DYLIB_PATH`.
    pub origin: String,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// Loads the library if necessary; returns the environment for sessions and the library's version. With `asked_for`,
/// the user named this library, and it is an error if another one is loaded already.
///
/// # Errors
/// [`RuntimeError::NotFound`], [`RuntimeError::BadLibrary`] or [`RuntimeError::AlreadyLoaded`].
pub fn load(located: &Located, asked_for: bool) -> Result<(Environment, String), RuntimeError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = &*loaded {
        if asked_for && loaded.used.path != located.path {
            return Err(RuntimeError::AlreadyLoaded {
                loaded: loaded.used.path.clone(),
                asked: located.path.clone(),
            });
        }
        return Ok((loaded.environment.clone(), loaded.used.version.clone()));
    }
    let mut absent = false;
    let started = guarded(|| {
        let builder = ort::init_from(&located.path).map_err(|error| {
            absent = located.by_loader && matches!(error, LoadDynamicError::Dlopen { .. });
            load_reason(&error)
        })?;
        let environment = builder
            .with_name("gqa2mla")
            .with_telemetry(false)
            .build()
            .map_err(|error| error.to_string())?;
        // Failures are returned as errors, so ONNX Runtime need not print them.
        environment.set_log_level(LogLevel::Fatal);
        Ok((environment, version(&located.path)))
    });
    let (environment, version) = started.map_err(|reason| {
        if absent {
            RuntimeError::NotFound {
                looked_in: located.looked_in.clone(),
            }
        } else {
            RuntimeError::BadLibrary {
                path: located.path.clone(),
                origin: located.origin.clone(),
                reason,
            }
        }
    })?;
    *loaded = Some(Loaded {
        used: Used {
            version: version.clone(),
            path: located.path.clone(),
            origin: located.origin.clone(),
        },
        environment: environment.clone(),
    });
    Ok((environment, version))
}

/// The library that this process has loaded, if any.
pub fn used() -> Option<Used> {
    let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    loaded.as_ref().map(|loaded| loaded.used.clone())
}

/// The error of the crate, followed by the cause from the loader.
fn load_reason(error: &LoadDynamicError) -> String {
    let below = match error {
        LoadDynamicError::Dlopen { error, .. } => error.source().map(ToString::to_string),
        _ => None,
    };
    below.map_or_else(|| error.to_string(), |below| format!("{error}: {below}"))
}

/// The version, from the library's file name or its build information, because the crate does not provide it.
fn version(library: &Path) -> String {
    let file = std::fs::canonicalize(library).unwrap_or_else(|_| library.to_path_buf());
    let name = file
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let of_name = name
        .split_once("onnxruntime")
        .map(|(_, rest)| rest.trim_start_matches(".so."));
    let of_build = ort::info()
        .split_once("git-branch=rel-")
        .map(|(_, rest)| rest);
    let leading = |text: &str| -> String {
        text.chars()
            .take_while(|c| c.is_ascii_digit() || *c == '.')
            .collect()
    };
    let candidates = of_name.into_iter().chain(of_build).map(leading);
    let full = |text: &String| text.matches('.').count() == 2 && !text.starts_with('.');
    candidates
        .map(|text| text.trim_end_matches('.').to_owned())
        .find(full)
        .unwrap_or_else(|| "of unknown version".to_owned())
}

/// Runs `work`, which calls the crate, and turns a panic into an error text.
///
/// # Errors
/// The error of `work`, or the message of the panic.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload: Box<dyn Any + Send>| Err(panic_message(&*payload)))
}
