//! The Python interpreter that has loaded this library, if any.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A Python interpreter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// The program, `sys.executable`.
    pub program: PathBuf,
    /// The folders that hold its installed packages, in the order of its search.
    pub packages: Vec<PathBuf>,
}

static INTERPRETER: OnceLock<Interpreter> = OnceLock::new();

/// Records that `interpreter` has loaded this library. Only the first call has an effect, because a process has one
/// interpreter.
pub fn loaded_by(interpreter: Interpreter) {
    let _ = INTERPRETER.set(interpreter);
}

/// The interpreter that has loaded this library.
#[must_use]
pub fn interpreter() -> Option<&'static Interpreter> {
    INTERPRETER.get()
}

/// A command that runs `gqa2mla` again, to be completed with arguments.
///
/// # Errors
/// I/O errors if the path of this program is unknown.
pub fn this_program() -> io::Result<Command> {
    let Some(python) = interpreter() else {
        return Ok(Command::new(std::env::current_exe()?));
    };
    let mut command = Command::new(&python.program);
    // The working directory is often the folder of an untrusted model, so that Python must not import packages from it.
    command.env("PYTHONSAFEPATH", "1").args(["-m", "gqa2mla"]);
    Ok(command)
}

impl Interpreter {
    /// The folder of the package `name`, if it is installed.
    #[must_use]
    pub fn package(&self, name: &str) -> Option<PathBuf> {
        let folders = self.packages.iter().filter(|folder| folder.is_absolute());
        folders
            .map(|folder| folder.join(name))
            .find(|folder| folder.is_dir())
    }

    /// The name of the interpreter in messages.
    #[must_use]
    pub fn shown(&self) -> impl std::fmt::Display + use<'_> {
        Path::display(&self.program)
    }
}
