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

/// The progress callback of a caller, with (stage, done, total). It can end the command by unwinding; see
/// [`crate::compress::events`].
pub type Listener = dyn FnMut(&str, usize, usize) + Send;

/// Time between two progress lines of a stage, if standard error is not a terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(30);

/// The progress of a stage at one time.
#[derive(Debug, Clone)]
pub struct Moment {
    within: String,
    stage: &'static str,
    detail: String,
    done: usize,
    total: usize,
    unit: &'static str,
}

impl Moment {
    /// The progress `done` of `total` steps, one of which is called `unit`.
    pub fn of(stage: &'static str, done: usize, total: usize, unit: &'static str) -> Self {
        Self {
            within: String::new(),
            stage,
            detail: String::new(),
            done,
            total,
            unit,
        }
    }

    /// The same progress with `detail` printed after the name of the stage.
    pub fn with(self, detail: String) -> Self {
        Self { detail, ..self }
    }

    /// The same progress with `row` printed before the name of the stage.
    pub fn within(self, row: &str) -> Self {
        let within = row.to_owned();
        Self { within, ..self }
    }

    /// The name of the stage for a caller.
    fn name(&self) -> String {
        format!("{}{}", self.stage, self.detail)
    }

    /// The name of the stage on a terminal, with its row.
    fn full_name(&self) -> String {
        format!("{}{}", self.within, self.name())
    }
}

/// The output of the progress of a command.
pub enum Bar<'b> {
    /// Standard error: a progress bar if it is a terminal; otherwise a line at the start of each stage and every half
    /// minute.
    Terminal(Stages),
    /// A callback of the caller.
    Listener(&'b Mutex<Box<Listener>>),
}

impl Bar<'_> {
    /// The progress output on standard error.
    pub fn on_terminal(manner: Manner) -> Self {
        Self::Terminal(Stages {
            quiet: manner.quiet,
            times: manner.verbose,
            current: None,
        })
    }

    /// Shows the progress of a stage.
    pub fn say(&mut self, at: Moment) {
        match self {
            Self::Terminal(stages) => stages.say(at),
            Self::Listener(listener) => {
                let mut listener = listener.lock().unwrap_or_else(PoisonError::into_inner);
                listener(&at.name(), at.done, at.total);
            }
        }
    }

    /// Calls `print`, which writes a line of other output above the progress bar, if there is one.
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

/// The stages of a command, which run one after another.
pub struct Stages {
    quiet: bool,
    times: bool,
    current: Option<Current>,
}

/// The current stage.
struct Current {
    at: Arc<Mutex<Moment>>,
    started: Instant,
    bar: Option<ProgressBar>,
    /// Dropping this ends the thread that prints progress lines.
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
            // A stage that is complete at its first report needs no progress bar.
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

    /// Ends the current stage, and prints its time if that is requested.
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
            complain(&format!("{}:{done} {time}", at.full_name()));
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
            bar.set_message(at.full_name());
        }
        *locked(&self.at) = at;
    }
}

/// A progress bar for `at`, with the estimated remaining time.
fn bar(at: &Moment) -> ProgressBar {
    let bar = ProgressBar::new(at.total as u64);
    let template = format!(
        "{{wide_msg}} [{{bar:10}}] {{human_pos}}/{{human_len}} {}s, {{per_sec}}, {{eta}} left",
        at.unit
    );
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar.set_message(at.full_name());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Prints a progress line every half minute until the sender is dropped.
fn now_and_then(at: &Mutex<Moment>, started: Instant, ended: &Receiver<()>) {
    while ended.recv_timeout(BETWEEN_LINES) == Err(RecvTimeoutError::Timeout) {
        complain(&line(&locked(at), started));
    }
}

/// The line at the start of a stage, with the total number of steps.
fn begun(at: &Moment) -> String {
    format!("{}{}: {}", at.within, at.stage, counted(at.total, at.unit))
}

/// The progress line of a stage: steps done, elapsed time and estimated remaining time.
fn line(at: &Moment, started: Instant) -> String {
    let (name, done) = (at.full_name(), grouped(at.done as u64));
    let total = counted(at.total, at.unit);
    let elapsed = started.elapsed();
    let left = match at.done {
        0 => String::new(),
        steps => {
            let left = at.total.saturating_sub(steps) as f64 / steps as f64;
            format!(
                ", {}, about {} left",
                speed(steps as f64 / elapsed.as_secs_f64().max(1e-3)),
                seconds(elapsed.mul_f64(left))
            )
        }
    };
    format!("{name}: {done} of {total}, {}{left}", seconds(elapsed))
}

/// Steps in a second, or in a minute where they are few.
fn speed(a_second: f64) -> String {
    match a_second {
        10.0.. => format!("{} a second", grouped(a_second as u64)),
        1.0.. => format!("{a_second:.1} a second"),
        _ => format!("{:.1} a minute", 60.0 * a_second),
    }
}

/// A duration in seconds, or in minutes and seconds.
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

    use super::{Moment, begun, line, seconds, speed};

    #[test]
    fn a_line_tells_what_is_done_and_what_is_left() {
        let at = |done| Moment::of("reading text", done, 16_384, "token");
        assert_eq!(begun(&at(0)), "reading text: 16,384 tokens");
        let Some(before) = Instant::now().checked_sub(Duration::from_secs(90)) else {
            return;
        };
        assert_eq!(
            line(&at(12_288), before),
            "reading text: 12,288 of 16,384 tokens, 90 s, 136 a second, about 30 s left"
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
        assert_eq!(speed(12_345.6), "12,345 a second");
        assert_eq!(speed(2.52), "2.5 a second");
        assert_eq!(speed(0.05), "3.0 a minute");
    }
}
