//! The Python module `gqa2mla._native`: the command line, and its commands as calls. The package around it, in Python, turns
//! keywords into options and results into objects.

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

/// How long a pending signal may wait.
const POLL: Duration = Duration::from_millis(50);
/// Stack of the thread that runs a command: what a program's first thread has.
const STACK: usize = 8 << 20;

/// A finished step of a command: stage, finished steps, all steps.
type Heard = (String, usize, usize);

/// What a command gives: exit code, JSON of its result, error, and what else there is to say.
type Answer = (u8, Option<String>, Option<String>, Vec<String>);

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{call, loaded, main};
}

/// Tells which interpreter has loaded this module, and where its packages are.
#[pyfunction]
fn loaded(program: PathBuf, packages: Vec<PathBuf>) {
    loaded_by(Interpreter { program, packages });
}

/// Runs a command line, the program's name first, on this process' terminal. Returns the exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| cli::run(arguments)) as u8
}

/// Runs a command line, the program's name first, and returns what it tells. `progress` is called in this thread.
///
/// An exception of `progress`, or of the handler of a signal, ends the command at its next step and is raised then. Another
/// signal does not wait for that.
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

/// Passes the steps on until the command ends.
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

/// What the command that `ended` has told.
fn answer(ended: thread::Result<(Exit, Told)>) -> PyResult<Answer> {
    let (exit, told) = ended.map_err(|payload| {
        let words = payload.downcast_ref::<&str>().copied();
        PyRuntimeError::new_err(format!("internal error: {}", words.unwrap_or("a panic")))
    })?;
    let data = told.data.map(|data| data.to_string());
    Ok((exit as u8, data, told.failure, told.complaints))
}
