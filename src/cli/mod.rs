//! The command line: one module per subcommand, and shared options.

mod bar;
mod bench;
mod bits;
mod calibrate;
mod clean;
mod compare;
mod compared;
mod completions;
mod diff;
mod escaped;
#[cfg(feature = "train")]
mod exchange;
mod exit;
mod factors;
mod frontier;
mod inspect;
mod man;
mod manner;
mod print;
mod proof;
mod provenance;
mod quality;
mod reach;
mod report_file;
mod rewrite;
mod runtime;
mod screen;
mod stages;
mod terminal;
mod text;
#[cfg(feature = "train")]
mod tune;
#[cfg(not(feature = "train"))]
mod untrained;
mod validate;
mod values;
mod verdict;

use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use exit::exit_of;
use manner::Manner;
use screen::Screen;

use crate::files::interrupted;
use crate::report;
use crate::runtime::RuntimeError;

pub use exit::Exit;
pub use screen::Told;

/// Rewrites ONNX language models from grouped-query attention to multi-head latent attention, and proves it.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing to rewrite or only part of the attentions recognised,
/// 4 validation failed, 130 stopped by Ctrl-C.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    manner: Manner,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Calibrate(calibrate::Calibrate),
    Rewrite(rewrite::Rewrite),
    Compare(compare::Compare),
    #[cfg(feature = "train")]
    Tune(tune::Tune),
    #[cfg(feature = "train")]
    Factors(exchange::Factors),
    #[cfg(not(feature = "train"))]
    #[command(hide = true)]
    Tune(untrained::Untrained),
    #[cfg(not(feature = "train"))]
    #[command(hide = true)]
    Factors(untrained::Untrained),
    Validate(validate::Validate),
    Bench(bench::Bench),
    Print(print::Print),
    Diff(diff::Diff),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Exit code of a run that is ended by a signal, minus the signal number, as in shells.
const STOPPED: i32 = 128;

/// Runs the command line `arguments`, whose first element is the program's name, on the terminal of this process.
/// Installs signal handlers for its remaining run time.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    if let Err(error) = clear_when_stopped() {
        terminal::complain(&format!(
            "warning: a run that is stopped may leave a hidden folder: {error}"
        ));
    }
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let guessed = Manner::guess(&arguments);
    let exit = match parse(&arguments, guessed) {
        Ok(Cli { command, manner }) => command.run(&arguments, &Screen::Terminal(manner)),
        Err(error) => usage(&error, &Screen::Terminal(guessed)),
    };
    match terminal::broken() {
        None => exit,
        Some(error) => {
            terminal::complain(&format!("error: writing to standard output: {error}"));
            Exit::Failed
        }
    }
}

/// Parses `arguments`. Errors are coloured according to the options in them.
fn parse(arguments: &[OsString], manner: Manner) -> Result<Cli, clap::Error> {
    let mut command = Cli::command().color(manner.color.of_clap());
    let matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Runs the command line `arguments`, whose first element is the program's name, for a caller in this process. Nothing
/// is printed and no signal handler is installed. `listener` receives the progress, on any thread, and can end the
/// command by unwinding.
pub fn call(
    arguments: impl IntoIterator<Item = OsString>,
    listener: impl FnMut(&str, usize, usize) + Send + 'static,
) -> (Exit, Told) {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let screen = Screen::caller(Box::new(listener));
    let exit = match Cli::try_parse_from(&arguments) {
        Ok(Cli { command, .. }) => command.run(&arguments, &screen),
        Err(error) => usage(&error, &screen),
    };
    (exit, screen.told())
}

impl Command {
    /// Runs the command of the command line `arguments`, and writes its result or error to `screen`.
    fn run(self, arguments: &[OsString], screen: &Screen) -> Exit {
        let started = Instant::now();
        let result = match self {
            Self::Inspect(command) => command.run(screen),
            Self::Calibrate(command) => command.run(screen),
            Self::Compare(command) => command.run(screen),
            Self::Rewrite(command) => command.run(arguments, screen),
            #[cfg(feature = "train")]
            Self::Tune(command) => command.run(arguments, screen),
            #[cfg(not(feature = "train"))]
            Self::Tune(command) => command.run(screen),
            Self::Factors(command) => command.run(screen),
            Self::Validate(command) => command.run(screen),
            Self::Bench(command) => command.run(screen),
            Self::Print(command) => command.run(screen),
            Self::Diff(command) => command.run(screen),
            Self::Completions(command) => command.run(&Cli::command(), screen),
            Self::Man(command) => command.run(Cli::command(), screen),
        };
        for path in interrupted::cleared() {
            screen.complain(&format!(
                "removed {}, which a run that was killed has left",
                path.display()
            ));
        }
        screen.detail(|| format!("took {}", bar::seconds(started.elapsed())));
        let left = interrupted::left();
        result.unwrap_or_else(|error| {
            for (path, bytes) in left {
                screen.complain(&kept(&path, bytes));
            }
            let exit = exit_of(&error);
            let words = format!("{error:#}");
            screen.fail_as_data(&words, exit);
            screen.fail(&words);
            exit
        })
    }
}

/// Installs signal handlers: a run that is stopped removes incomplete outputs, and reports kept work from which the
/// next run resumes.
fn clear_when_stopped() -> std::io::Result<()> {
    crate::files::mapped::report_truncation()?;
    crate::runtime::report_aborts()?;
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        std::thread::Builder::new().spawn(move || {
            if let Some(signal) = signals.forever().next() {
                interrupted::clear();
                terminal::complain(&stopped());
                // Exits immediately, because exit handlers of libraries could conflict with running threads.
                signal_hook::low_level::exit(STOPPED + signal);
            }
        })?;
    }
    Ok(())
}

/// What a stopped run leaves.
fn stopped() -> String {
    let published = interrupted::published();
    let published = published
        .iter()
        .map(|path| format!("{} is complete", path.display()));
    let unfinished = interrupted::unfinished();
    let unfinished = unfinished.iter().map(|(path, bytes)| kept(path, *bytes));
    let left: Vec<String> = published.chain(unfinished).collect();
    match left.is_empty() {
        true => "stopped; nothing was written".to_owned(),
        false => format!("stopped; {}", left.join("\nstopped; ")),
    }
}

/// What unfinished work at `path` is for.
fn kept(path: &Path, bytes: u64) -> String {
    let clean = if path.is_dir() {
        ", and --clean removes it"
    } else {
        ""
    };
    format!(
        "{} keeps what is done ({}): the same command goes on from there{clean}",
        path.display(),
        report::size(bytes)
    )
}

/// Writes a message of clap: help, version, or an error.
fn usage(error: &clap::Error, screen: &Screen) -> Exit {
    let exit = match error.use_stderr() {
        true => Exit::Usage,
        false => Exit::Done,
    };
    let text = error.render().to_string();
    let text = text.trim_end();
    match (screen, exit) {
        _ if error.kind() == ErrorKind::DisplayVersion => screen.say(&version()),
        (Screen::Caller { .. }, Exit::Done) => screen.say(text),
        (Screen::Caller { .. }, _) => screen.fail(text.trim_start_matches("error: ")),
        (Screen::Terminal(_), _) => {
            if exit == Exit::Usage {
                screen.fail_as_data(text, exit);
            }
            // clap colours the text if the terminal supports it.
            let _ = error.print();
        }
    }
    exit
}

/// The version of this tool, and the default runtime.
fn version() -> String {
    let runtime = match crate::runtime::version() {
        Ok(used) => format!(
            "ONNX Runtime {} ({}, by {})",
            used.version,
            used.path.display(),
            used.origin
        ),
        Err(RuntimeError::NotFound { looked_in }) => {
            let instead = if cfg!(feature = "tract") {
                "the embedded tract runs models"
            } else {
                "built without tract, so no models can be run"
            };
            format!("no ONNX Runtime (looked in {looked_in}); {instead}")
        }
        Err(error) => format!("ONNX Runtime cannot be used: {error}"),
    };
    format!("gqa2mla {}\n{runtime}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// clap checks the consistency of options only when a command is run.
    #[test]
    fn options_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
