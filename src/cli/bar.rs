//! The progress of a stage.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::manner::Manner;
use crate::cli::terminal::complain;
use crate::report::{counted, grouped};

/// Receives (stage, finished steps, all steps). It ends the command by unwinding, see [`crate::compress::events`].
pub type Listener = dyn FnMut(&str, usize, usize) + Send;

/// Without a terminal, the time from one line of a stage to the next.
const BETWEEN_LINES: Duration = Duration::from_secs(30);

/// A moment of a stage.
#[derive(Debug, Clone)]
pub struct Moment {
    stage: &'static str,
    detail: String,
    done: usize,
    total: usize,
    unit: &'static str,
}

impl Moment {
    /// `done` of `total` steps of a stage, one of which is called `unit`.
    pub fn of(stage: &'static str, done: usize, total: usize, unit: &'static str) -> Self {
        Self {
            stage,
            detail: String::new(),
            done,
            total,
            unit,
        }
    }

    /// The same with what stands behind the name of the stage.
    pub fn with(self, detail: String) -> Self {
        Self { detail, ..self }
    }

    fn name(&self) -> String {
        format!("{}{}", self.stage, self.detail)
    }
}

/// The progress of the stages of a command.
pub enum Bar<'b> {
    /// On standard error: a bar where that is a terminal, else a line when a stage starts and one in every half a minute.
    Terminal(Stages),
    /// Calls of a listener.
    Listener(&'b Mutex<Box<Listener>>),
}

impl Bar<'_> {
    /// Progress on standard error.
    pub fn on_terminal(manner: Manner) -> Self {
        Self::Terminal(Stages {
            quiet: manner.quiet,
            times: manner.verbose,
            current: None,
        })
    }

    /// Shows a moment of a stage.
    pub fn say(&mut self, at: Moment) {
        match self {
            Self::Terminal(stages) => stages.say(at),
            Self::Listener(listener) => {
                let mut listener = listener.lock().unwrap_or_else(PoisonError::into_inner);
                listener(&at.name(), at.done, at.total);
            }
        }
    }

    /// Prints a line of something else, above the bar if there is one.
    pub fn above(&self, print: impl FnOnce()) {
        match self {
            Self::Terminal(Stages {
                current: Some(Current { bar: Some(bar), .. }),
                ..
            }) => bar.suspend(print),
            _ => print(),
        }
    }
}

/// The stages of a command, one after another.
pub struct Stages {
    quiet: bool,
    times: bool,
    current: Option<Current>,
}

/// The stage that runs.
struct Current {
    at: Arc<Mutex<Moment>>,
    started: Instant,
    bar: Option<ProgressBar>,
    /// Ends the thread that prints a line now and then.
    _lines: Option<Sender<()>>,
}

impl Stages {
    fn say(&mut self, at: Moment) {
        if self.quiet {
            return;
        }
        let same = |current: &Current| locked(&current.at).stage == at.stage;
        if !self.current.as_ref().is_some_and(same) {
            self.end();
            // A stage that is over at its first word took no time worth a bar.
            if at.done < at.total || self.times {
                self.current = Some(Current::start(at.clone()));
            }
        }
        let is_over = at.done >= at.total;
        if let Some(current) = &self.current {
            current.show(at);
        }
        if is_over {
            self.end();
        }
    }

    /// Ends the current stage, and prints its time if that is wanted.
    fn end(&mut self) {
        let Some(current) = self.current.take() else {
            return;
        };
        if let Some(bar) = &current.bar {
            bar.finish_and_clear();
        }
        if self.times {
            let at = locked(&current.at);
            let done = match at.done {
                0 => String::new(),
                done => format!(" {},", counted(done, at.unit)),
            };
            let time = seconds(current.started.elapsed());
            complain(&format!("{}:{done} {time}", at.name()));
        }
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        self.end();
    }
}

impl Current {
    fn start(at: Moment) -> Self {
        let started = Instant::now();
        let (bar, lines) = match io::stderr().is_terminal() {
            true => (Some(bar(&at)), None),
            false => (None, Some(channel())),
        };
        let at = Arc::new(Mutex::new(at));
        let lines = lines.map(|(send, receive)| {
            complain(&begun(&locked(&at)));
            let at = Arc::clone(&at);
            thread::spawn(move || now_and_then(&at, started, &receive));
            send
        });
        Self {
            at,
            started,
            bar,
            _lines: lines,
        }
    }

    fn show(&self, at: Moment) {
        if let Some(bar) = &self.bar {
            bar.set_length(at.total as u64);
            bar.set_position(at.done as u64);
            bar.set_message(at.name());
        }
        *locked(&self.at) = at;
    }
}

/// A bar that shows `at`, with the time that is left as soon as it can be told.
fn bar(at: &Moment) -> ProgressBar {
    let bar = ProgressBar::new(at.total as u64);
    let template = format!(
        "{{msg}} [{{bar:20}}] {{human_pos}} of {{human_len}} {}s, {{elapsed}}, {{eta}} left",
        at.unit
    );
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar.set_message(at.name());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Prints a line of the stage every half a minute, until the sender is gone.
fn now_and_then(at: &Mutex<Moment>, started: Instant, ended: &Receiver<()>) {
    while ended.recv_timeout(BETWEEN_LINES) == Err(RecvTimeoutError::Timeout) {
        complain(&line(&locked(at), started));
    }
}

/// The line of a stage that starts: how much there is to do.
fn begun(at: &Moment) -> String {
    format!("{}: {}", at.stage, counted(at.total, at.unit))
}

/// The line of a stage that runs: how much is done, how long it took and will take.
fn line(at: &Moment, started: Instant) -> String {
    let (name, done) = (at.name(), grouped(at.done as u64));
    let total = counted(at.total, at.unit);
    let elapsed = started.elapsed();
    let left = match at.done {
        0 => String::new(),
        steps => {
            let left = at.total.saturating_sub(steps) as f64 / steps as f64;
            format!(", about {} left", seconds(elapsed.mul_f64(left)))
        }
    };
    format!("{name}: {done} of {total}, {}{left}", seconds(elapsed))
}

/// A time in seconds, or in minutes and seconds.
pub fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..120 => format!("{} s", time.as_secs()),
        longer => format!("{} min {} s", longer / 60, longer % 60),
    }
}

fn locked(at: &Mutex<Moment>) -> MutexGuard<'_, Moment> {
    at.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Moment, begun, line, seconds};

    #[test]
    fn a_line_tells_what_is_done_and_what_is_left() {
        let at = |done| Moment::of("reading text", done, 16_384, "token");
        assert_eq!(begun(&at(0)), "reading text: 16,384 tokens");
        let Some(before) = Instant::now().checked_sub(Duration::from_secs(90)) else {
            return;
        };
        assert_eq!(
            line(&at(12_288), before),
            "reading text: 12,288 of 16,384 tokens, 90 s, about 30 s left"
        );
        assert_eq!(
            line(&at(0), before),
            "reading text: 0 of 16,384 tokens, 90 s"
        );
        assert_eq!(
            begun(&Moment::of("rewriting", 0, 1, "attention")),
            "rewriting: 1 attention"
        );
        assert_eq!(seconds(Duration::from_secs(200)), "3 min 20 s");
    }
}
