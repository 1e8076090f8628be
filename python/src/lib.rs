//! The Python module `gqa2mla._native`, which runs the commands of the command line. The Python package around it
//! converts keyword arguments to options and results to objects.

use std::ffi::OsString;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use gqa2mla::cli::{self, Exit, Told};
use gqa2mla::runtime::host::{Interpreter, loaded_by};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// Interval at which pending signals are checked.
const POLL: Duration = Duration::from_millis(50);
/// Stack size of the thread that runs a command: that of a program's main thread.
const STACK: usize = 8 << 20;

/// Progress of a command: stage, steps done, total number of steps.
type Heard = (String, usize, usize);

/// The result of a command: exit code, result as JSON, error message, other messages.
type Answer = (u8, Option<String>, Option<String>, Vec<String>);

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{call, loaded, main};
}

/// Records the interpreter that has loaded this module, and the folders of its packages.
#[pyfunction]
fn loaded(program: PathBuf, packages: Vec<PathBuf>) {
    loaded_by(Interpreter { program, packages });
}

/// Runs a command line, whose first element is the program's name, on the terminal of this process. Returns the exit
/// code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| cli::run(arguments)) as u8
}

/// Runs a command line, whose first element is the program's name, and returns its result. `progress` is called in this
/// thread.
///
/// If `progress` or a signal handler raises an exception, the command ends at its next step, and then the exception is
/// raised. A second signal does not wait for the command to end.
#[pyfunction]
fn call(
    py: Python<'_>,
    arguments: Vec<OsString>,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<Answer> {
    let (sender, steps) = sync_channel::<Heard>(1);
    let listener = move |stage: &str, done, total| {
        if sender.send((stage.to_owned(), done, total)).is_err() {
            resume_unwind(Box::new("nobody waits for the result"));
        }
    };
    let worker = thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || cli::call(arguments, listener))?;
    let heard = listen(py, steps, progress.as_ref());
    while heard.is_err() && !worker.is_finished() {
        py.detach(|| thread::sleep(POLL));
        py.check_signals()?;
    }
    heard?;
    answer(py.detach(|| worker.join()))
}

/// Passes the progress to the callback until the command ends.
fn listen(
    py: Python<'_>,
    mut steps: Receiver<Heard>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    loop {
        let received;
        (received, steps) = py.detach(move || (steps.recv_timeout(POLL), steps));
        match (received, progress) {
            (Ok(step), Some(progress)) => drop(progress.call1(step)?),
            (Ok(_), None) | (Err(RecvTimeoutError::Timeout), _) => {}
            (Err(RecvTimeoutError::Disconnected), _) => return Ok(()),
        }
        py.check_signals()?;
    }
}

/// The result of the command that `ended` has run.
fn answer(ended: thread::Result<(Exit, Told)>) -> PyResult<Answer> {
    let (exit, told) = ended.map_err(|payload| {
        let words = payload.downcast_ref::<&str>().copied();
        PyRuntimeError::new_err(format!("internal error: {}", words.unwrap_or("a panic")))
    })?;
    let data = told.data.map(|data| data.to_string());
    Ok((exit as u8, data, told.failure, told.complaints))
}
