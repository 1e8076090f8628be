//! Where a command tells its result, its complaints and its progress.

use std::sync::{Mutex, MutexGuard, PoisonError};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::cli::bar::{Bar, Listener};
use crate::cli::exit::Exit;
use crate::cli::frontier;
use crate::cli::terminal::{complain, emit, emit_json};
use crate::compress::events::{Event, Stage};

/// What a command tells to.
pub enum Screen {
    /// Standard output and standard error.
    Terminal {
        /// The result is one JSON object in place of text.
        json: bool,
    },
    /// The caller of a function. Nothing is printed.
    Caller {
        /// What was told so far.
        told: Mutex<Told>,
        /// Hears of the progress.
        listener: Mutex<Box<Listener>>,
    },
}

/// What a command has told its caller.
#[derive(Debug, Default)]
pub struct Told {
    /// What `--json` prints; a string for what is text only.
    pub data: Option<Value>,
    /// The error.
    pub failure: Option<String>,
    /// What else is printed on standard error.
    pub complaints: Vec<String>,
}

impl Screen {
    /// A caller with this listener.
    pub fn caller(listener: Box<Listener>) -> Self {
        Self::Caller {
            told: Mutex::default(),
            listener: Mutex::new(listener),
        }
    }

    /// What was told, if to a caller.
    pub fn told(self) -> Told {
        match self {
            Self::Terminal { .. } => Told::default(),
            Self::Caller { told, .. } => told.into_inner().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Tells the result: the text, or the data for programs.
    pub fn show(&self, text: impl FnOnce() -> String, data: impl FnOnce() -> Value) {
        match self {
            Self::Terminal { json: false } => emit(&text()),
            Self::Terminal { json: true } => emit_json(&data()),
            Self::Caller { told, .. } => locked(told).data = Some(data()),
        }
    }

    /// Tells a part of a result that comes in parts. Programs get [`Self::data`] at the end.
    pub fn line(&self, text: impl FnOnce() -> String) {
        if let Self::Terminal { json: false } = self {
            emit(&text());
        }
    }

    /// Tells programs the whole of a result that was told in parts.
    pub fn data(&self, data: impl FnOnce() -> Value) {
        match self {
            Self::Terminal { json: false } => {}
            Self::Terminal { json: true } => emit_json(&data()),
            Self::Caller { told, .. } => locked(told).data = Some(data()),
        }
    }

    /// Tells a result that is text for programs too.
    pub fn say(&self, text: &str) {
        match self {
            Self::Terminal { .. } => emit(text),
            Self::Caller { told, .. } => locked(told).data = Some(json!(text)),
        }
    }

    /// Tells something beside the result.
    pub fn complain(&self, text: &str) {
        match self {
            Self::Terminal { .. } => complain(text),
            Self::Caller { told, .. } => locked(told).complaints.push(text.to_owned()),
        }
    }

    /// Tells why a command that has shown its result did not succeed.
    pub fn fail(&self, error: &str) {
        match self {
            Self::Terminal { .. } => complain(&format!("error: {error}")),
            Self::Caller { told, .. } => locked(told).failure = Some(error.to_owned()),
        }
    }

    /// Tells programs that read the terminal why there is no result.
    pub fn fail_as_data(&self, error: &str, exit: Exit) {
        if let Self::Terminal { json: true } = self {
            emit_json(&json!({ "status": "failed", "exit_code": exit as u8, "error": error }));
        }
    }

    /// Whether this process runs the command and does nothing else.
    pub fn owns_the_process(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// A progress bar.
    pub fn bar(&self) -> Bar<'_> {
        match self {
            Self::Terminal { .. } => Bar::on_terminal(),
            Self::Caller { listener, .. } => Bar::Listener(listener),
        }
    }

    /// A callback with (done, total) that shows the progress of `what`.
    pub fn progress(&self, what: &'static str) -> impl FnMut(usize, usize) + Send {
        let mut bar = self.bar();
        move |done, total| bar.say(done, total, what)
    }

    /// A callback that shows the progress of a compression, with a message per stage.
    pub fn observer(&self) -> impl FnMut(Event) + Send {
        let mut bar = self.bar();
        let mut header = Some(frontier::HEADER);
        move |Event { stage, done, total }| {
            let words = match stage {
                Stage::Tried(point) => {
                    header
                        .take()
                        .into_iter()
                        .for_each(|text| self.complain(text));
                    return self.complain(&frontier::line(&point));
                }
                Stage::Calibrating => "calibrating",
                Stage::Probing => "probing",
                Stage::Recording => "reading the text",
                Stage::Reconstructing { error } => {
                    return bar.say(done, total, &format!("reconstructing, error {error:.4}"));
                }
                Stage::Rewriting => "rewriting",
                Stage::Measuring => "reading",
                Stage::Validating => validating(false),
                Stage::ValidatingOptimized => validating(true),
            };
            bar.say(done, total, words);
        }
    }
}

fn locked(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The message for a validation with the runtime's graph optimizations on or off.
pub fn validating(optimized: bool) -> &'static str {
    match optimized {
        false => "validating",
        true => "validating, optimized",
    }
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
