//! Everything that reaches the terminal goes through here, with control characters escaped.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::cli::escaped::{escaped, escaped_json};

/// What went wrong with standard output, if anything did.
static BROKEN: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes to standard output. A reader that has gone away is no error; what else goes wrong is asked for at the end.
pub fn emit(text: &str) {
    write_out(&escaped(text));
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

/// The error that kept something from standard output.
pub fn broken() -> Option<io::Error> {
    BROKEN.lock().ok()?.take()
}

/// Writes to standard error.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", escaped(text));
}

/// A number of bytes, for people.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// A table without frames.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}

/// A progress bar on a terminal, nothing elsewhere. It appears with the first step.
pub struct Bar {
    bar: ProgressBar,
    what: &'static str,
}

impl Bar {
    /// A bar for `what`.
    pub fn new(what: &'static str) -> Self {
        Self {
            bar: ProgressBar::hidden(),
            what,
        }
    }

    /// `done` of `total` steps, under a message of their own.
    pub fn say(&mut self, done: usize, total: usize, message: &str) {
        if self.bar.is_hidden() && done < total && io::stderr().is_terminal() {
            self.bar = ProgressBar::new(0);
            let template = "{msg} [{bar:30}] {pos}/{len} {elapsed}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
        self.bar.set_message(message.to_owned());
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        if done >= total {
            self.bar.finish_and_clear();
            self.bar = ProgressBar::hidden();
        }
    }

    /// `done` of `total` steps.
    pub fn step(&mut self, done: usize, total: usize) {
        self.say(done, total, self.what);
    }
}

/// A bar as a function of steps done and steps there are.
pub fn progress(what: &'static str) -> impl FnMut(usize, usize) + Send {
    let mut bar = Bar::new(what);
    move |done, total| bar.step(done, total)
}
