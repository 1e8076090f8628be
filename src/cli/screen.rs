//! The output of a command: its result, its messages and its progress.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};
use terminal_size::Width;

use crate::cli::bar::{Bar, Listener, Moment};
use crate::cli::exit::Exit;
use crate::cli::frontier::Rows;
use crate::cli::manner::Manner;
use crate::cli::stages::moment;
use crate::cli::terminal::{complain, emit, emit_json};
use crate::compress::events::Event;
use crate::compress::promise::Promise;

/// The destination of the output of a command.
pub enum Screen {
    /// Standard output and standard error.
    Terminal(Manner),
    /// A caller in this process. Nothing is printed.
    Caller {
        /// The output so far.
        told: Mutex<Told>,
        /// The callback that receives the progress.
        listener: Mutex<Box<Listener>>,
    },
}

/// The output of a command for a caller.
#[derive(Debug, Default)]
pub struct Told {
    /// The JSON object that `--json` prints; a string for output that is only text.
    pub data: Option<Value>,
    /// The error message, if the command failed.
    pub failure: Option<String>,
    /// The other messages that a terminal gets on standard error.
    pub complaints: Vec<String>,
}

impl Screen {
    /// A screen for a caller with this progress callback.
    pub fn caller(listener: Box<Listener>) -> Self {
        Self::Caller {
            told: Mutex::default(),
            listener: Mutex::new(listener),
        }
    }

    /// The output for the caller; empty for a terminal.
    pub fn told(self) -> Told {
        match self {
            Self::Terminal(_) => Told::default(),
            Self::Caller { told, .. } => told.into_inner().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Writes the result, as text or as JSON.
    pub fn show(&self, text: impl FnOnce() -> String, data: impl FnOnce() -> Value) {
        match self {
            Self::Terminal(manner) if manner.json => emit_json(&data()),
            Self::Terminal(manner) => emit(&text(), manner.color),
            Self::Caller { told, .. } => locked(told).data = Some(data()),
        }
    }

    /// Writes one part of a text result that is printed part by part. Its JSON is written once at the end, by
    /// [`Self::data`].
    pub fn line(&self, text: impl FnOnce() -> String) {
        if let Self::Terminal(manner) = self
            && !manner.json
        {
            emit(&text(), manner.color);
        }
    }

    /// Writes the JSON of a result whose text was printed part by part.
    pub fn data(&self, data: impl FnOnce() -> Value) {
        match self {
            Self::Terminal(manner) if manner.json => emit_json(&data()),
            Self::Terminal(_) => {}
            Self::Caller { told, .. } => locked(told).data = Some(data()),
        }
    }

    /// Writes a result that is text even with `--json`.
    pub fn say(&self, text: &str) {
        match self {
            Self::Terminal(manner) => emit(text, manner.color),
            Self::Caller { told, .. } => locked(told).data = Some(json!(text)),
        }
    }

    /// Writes a message to standard error, unless `--quiet` is given.
    pub fn complain(&self, text: &str) {
        match self {
            Self::Terminal(manner) if manner.quiet => {}
            Self::Terminal(_) => complain(text),
            Self::Caller { told, .. } => locked(told).complaints.push(text.to_owned()),
        }
    }

    /// Writes a message to standard error if `--verbose` is given.
    pub fn detail(&self, text: impl FnOnce() -> String) {
        if let Self::Terminal(manner) = self
            && manner.verbose
        {
            complain(&text());
        }
    }

    /// Writes the error of a command that has failed.
    pub fn fail(&self, error: &str) {
        match self {
            Self::Terminal(_) => complain(&format!("error: {error}")),
            Self::Caller { told, .. } => locked(told).failure = Some(error.to_owned()),
        }
    }

    /// Writes the error as JSON to standard output, if `--json` is given.
    pub fn fail_as_data(&self, error: &str, exit: Exit) {
        if let Self::Terminal(Manner { json: true, .. }) = self {
            emit_json(&json!({ "status": "failed", "exit_code": exit as u8, "error": error }));
        }
    }

    /// Whether the command is all that this process does.
    pub fn owns_the_process(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The progress output.
    pub fn bar(&self) -> Bar<'_> {
        match self {
            Self::Terminal(manner) => Bar::on_terminal(*manner),
            Self::Caller { listener, .. } => Bar::Listener(listener),
        }
    }

    /// A callback with (done, total) that shows the progress of `stage`, whose steps are counted in `unit`.
    pub fn progress(
        &self,
        stage: &'static str,
        unit: &'static str,
    ) -> impl FnMut(usize, usize) + Send {
        let mut bar = self.bar();
        move |done, total| bar.say(Moment::of(stage, done, total, unit))
    }

    /// A callback that shows the progress of a compression, and the measured sizes of a search for `promise` or of a
    /// comparison.
    pub fn observer(&self, promise: Option<Promise>) -> impl FnMut(Event) + Send {
        let mut bar = self.bar();
        let mut rows = Rows::of(promise);
        move |event| match moment(event) {
            Ok(moment) => bar.say(moment),
            Err(point) => bar.above(|| self.complain(&rows.next(&point))),
        }
    }
}

fn locked(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An empty table without borders. On a terminal that is too narrow for it, its cells wrap.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    match terminal_size::terminal_size_of(io::stdout()) {
        Some((Width(columns), _)) => table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(columns),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}
