//! Where a command tells its result, its complaints and its progress.

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

/// What a command tells to.
pub enum Screen {
    /// Standard output and standard error.
    Terminal(Manner),
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
            Self::Terminal(_) => Told::default(),
            Self::Caller { told, .. } => told.into_inner().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Tells the result: the text, or the data for programs.
    pub fn show(&self, text: impl FnOnce() -> String, data: impl FnOnce() -> Value) {
        match self {
            Self::Terminal(manner) if manner.json => emit_json(&data()),
            Self::Terminal(manner) => emit(&text(), manner.color),
            Self::Caller { told, .. } => locked(told).data = Some(data()),
        }
    }

    /// Tells a part of a result that comes in parts. Programs get [`Self::data`] at the end.
    pub fn line(&self, text: impl FnOnce() -> String) {
        if let Self::Terminal(manner) = self
            && !manner.json
        {
            emit(&text(), manner.color);
        }
    }

    /// Tells programs the whole of a result that was told in parts.
    pub fn data(&self, data: impl FnOnce() -> Value) {
        match self {
            Self::Terminal(manner) if manner.json => emit_json(&data()),
            Self::Terminal(_) => {}
            Self::Caller { told, .. } => locked(told).data = Some(data()),
        }
    }

    /// Tells a result that is text for programs too.
    pub fn say(&self, text: &str) {
        match self {
            Self::Terminal(manner) => emit(text, manner.color),
            Self::Caller { told, .. } => locked(told).data = Some(json!(text)),
        }
    }

    /// Tells something beside the result, unless it is to be quiet.
    pub fn complain(&self, text: &str) {
        match self {
            Self::Terminal(manner) if manner.quiet => {}
            Self::Terminal(_) => complain(text),
            Self::Caller { told, .. } => locked(told).complaints.push(text.to_owned()),
        }
    }

    /// Tells something beside the result to those who asked for more.
    pub fn detail(&self, text: impl FnOnce() -> String) {
        if let Self::Terminal(manner) = self
            && manner.verbose
        {
            complain(&text());
        }
    }

    /// Tells why a command that has shown its result did not succeed.
    pub fn fail(&self, error: &str) {
        match self {
            Self::Terminal(_) => complain(&format!("error: {error}")),
            Self::Caller { told, .. } => locked(told).failure = Some(error.to_owned()),
        }
    }

    /// Tells programs that read the terminal why there is no result.
    pub fn fail_as_data(&self, error: &str, exit: Exit) {
        if let Self::Terminal(Manner { json: true, .. }) = self {
            emit_json(&json!({ "status": "failed", "exit_code": exit as u8, "error": error }));
        }
    }

    /// Whether this process runs the command and does nothing else.
    pub fn owns_the_process(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// A progress bar.
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

    /// A callback that shows the progress of a compression, and every size that a search for `promise` has measured.
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

/// A number of bytes as text.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
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
