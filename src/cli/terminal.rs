//! Standard output and standard error, with control characters escaped.

use std::io::{self, Write};
use std::sync::Mutex;

use serde_json::Value;

use crate::cli::escaped::{escaped, escaped_json};
use crate::cli::manner::Color;
use crate::cli::verdict::painted;

/// The first error of standard output, if any.
static BROKEN: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes to standard output, with verdicts coloured according to `color`. A closed pipe is no error; other errors are
/// recorded for [`broken`].
pub fn emit(text: &str, color: Color) {
    write_out(&painted(&escaped(text), color.on_stdout()));
}

/// Writes one JSON value to standard output.
pub fn emit_json(value: &Value) {
    write_out(&escaped_json(&format!("{value:#}")));
}

fn write_out(text: &str) {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
        && let Ok(mut broken) = BROKEN.lock()
    {
        *broken = Some(error);
    }
}

/// The recorded error of standard output.
pub fn broken() -> Option<io::Error> {
    BROKEN.lock().ok()?.take()
}

/// Writes to standard error.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", painted(&escaped(text), false));
}
