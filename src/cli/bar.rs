//! The progress of a stage.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Receives (stage, finished steps, all steps). It ends the command by unwinding, see [`crate::compress::events`].
pub type Listener = dyn FnMut(&str, usize, usize) + Send;

/// The progress of a stage, from its first step to its last.
pub enum Bar<'b> {
    /// A bar on standard error, shown only where that is a terminal.
    Terminal(ProgressBar),
    /// Calls of a listener.
    Listener(&'b Mutex<Box<Listener>>),
}

impl Bar<'_> {
    /// A bar on standard error.
    pub fn on_terminal() -> Self {
        Self::Terminal(ProgressBar::hidden())
    }

    /// Shows `done` of `total` steps under `message`.
    pub fn say(&mut self, done: usize, total: usize, message: &str) {
        match self {
            Self::Terminal(bar) => draw(bar, done, total, message),
            Self::Listener(listener) => {
                let mut listener = listener.lock().unwrap_or_else(PoisonError::into_inner);
                listener(message, done, total);
            }
        }
    }
}

fn draw(bar: &mut ProgressBar, done: usize, total: usize, message: &str) {
    if bar.is_hidden() && done < total && io::stderr().is_terminal() {
        *bar = ProgressBar::new(0);
        let template = "{msg} [{bar:30}] {pos}/{len} {elapsed}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    bar.set_message(message.to_owned());
    bar.set_length(total as u64);
    bar.set_position(done as u64);
    if done >= total {
        bar.finish_and_clear();
        *bar = ProgressBar::hidden();
    }
}
