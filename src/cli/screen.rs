//! All output to the terminal, with control characters escaped.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use gqa2mla::compress::events::{Event, Stage};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::cli::escaped::{escaped, escaped_json};
use crate::cli::frontier;

/// The first error of standard output, if any.
static BROKEN: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes to standard output. A closed pipe is no error; other errors are recorded for [`broken`].
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

/// The recorded error of standard output.
pub fn broken() -> Option<io::Error> {
    BROKEN.lock().ok()?.take()
}

/// Writes to standard error.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", escaped(text));
}

/// A number of bytes as text.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// An empty table without borders.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table
}

/// A progress bar, shown only on a terminal, from the first step of a stage to the last.
pub struct Bar(ProgressBar);

impl Default for Bar {
    fn default() -> Self {
        Self(ProgressBar::hidden())
    }
}

impl Bar {
    /// Shows `done` of `total` steps under `message`.
    pub fn say(&mut self, done: usize, total: usize, message: &str) {
        if self.0.is_hidden() && done < total && io::stderr().is_terminal() {
            self.0 = ProgressBar::new(0);
            let template = "{msg} [{bar:30}] {pos}/{len} {elapsed}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.0.set_style(style);
            }
            self.0.enable_steady_tick(Duration::from_millis(200));
        }
        self.0.set_message(message.to_owned());
        self.0.set_length(total as u64);
        self.0.set_position(done as u64);
        if done >= total {
            self.0.finish_and_clear();
            self.0 = ProgressBar::hidden();
        }
    }
}

/// A callback with (done, total) that shows a progress bar for `what`.
pub fn progress(what: &'static str) -> impl FnMut(usize, usize) + Send {
    let mut bar = Bar::default();
    move |done, total| bar.say(done, total, what)
}

/// A callback that shows the progress of a compression, with a message per stage.
pub fn observer() -> impl FnMut(Event) + Send {
    let mut bar = Bar::default();
    let mut header = Some(frontier::HEADER);
    move |Event { stage, done, total }| {
        let words = match stage {
            Stage::Calibrating => "calibrating",
            Stage::Probing => "probing",
            Stage::Recording => "reading the text",
            Stage::Reconstructing { error } => {
                return bar.say(done, total, &format!("reconstructing, error {error:.4}"));
            }
            Stage::Tried(point) => {
                header.take().into_iter().for_each(complain);
                return complain(&frontier::line(&point));
            }
            Stage::Rewriting => "rewriting",
            Stage::Measuring => "reading",
            Stage::Validating => validating(false),
            Stage::ValidatingOptimized => validating(true),
            _ => "working",
        };
        bar.say(done, total, words);
    }
}

/// The message for a validation with the runtime's graph optimizations on or off.
pub fn validating(optimized: bool) -> &'static str {
    match optimized {
        false => "validating",
        true => "validating, optimized",
    }
}
