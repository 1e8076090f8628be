//! A message where ONNX Runtime ends the process.
//!
//! Its kernels check most of what they read; where one reads beyond a shape, as `GroupQueryAttention` of version 1.32 does
//! with `position_ids` of one axis, `std::terminate` is called, and no error is returned.

#![allow(unsafe_code)] // Installing a signal handler is unsafe.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The models that ONNX Runtime loads or runs at the moment.
static RUNNING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// While it lives, an abort is one of ONNX Runtime with this model.
#[derive(Debug)]
pub struct Running(PathBuf);

impl Running {
    /// ONNX Runtime is about to load or to run `model`.
    pub fn of(model: &Path) -> Self {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.push(model.to_path_buf());
        Self(model.to_path_buf())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = running.iter().rposition(|model| *model == self.0) {
            running.swap_remove(at);
        }
    }
}

/// Installs a handler of SIGABRT: where ONNX Runtime aborts the process, it ends with exit code 1 and a message on standard
/// error that names the model. To be called by programs only, because a library should not install signal handlers.
///
/// # Errors
/// I/O errors.
#[cfg(unix)]
pub fn report_aborts() -> io::Result<()> {
    // SAFETY: the action does only what a signal handler may: it takes a lock only if it is free, reads without
    // allocating, writes to a descriptor, and ends the process without running anything else.
    unsafe {
        signal_hook_registry::register(signal_hook::consts::SIGABRT, end_by_abort)?;
    }
    Ok(())
}

/// Does nothing on other systems.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn report_aborts() -> io::Result<()> {
    Ok(())
}

/// Prints the model that runs, and ends the process; returns if none runs, so that the signal ends it.
#[cfg(unix)]
fn end_by_abort() {
    use std::os::unix::ffi::OsStrExt;
    let say = |bytes: &[u8]| {
        let _ = rustix::io::write(rustix::stdio::stderr(), bytes);
    };
    // If another thread holds the lock, the path is not printed.
    let running = RUNNING.try_lock().ok();
    let Some(model) = running.as_ref().and_then(|running| running.last()) else {
        return;
    };
    say(b"error: ");
    for byte in model.as_os_str().as_bytes() {
        say(&[if byte.is_ascii_control() { b'?' } else { *byte }]);
    }
    say(b": ONNX Runtime aborts the process when it runs this model\n");
    signal_hook::low_level::exit(1);
}
