//! The command line: one module per subcommand, and shared options.

mod bench;
mod bits;
mod calibrate;
mod compare;
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
mod print;
mod proof;
mod quality;
mod reach;
mod rewrite;
mod runtime;
mod screen;
mod text;
#[cfg(feature = "train")]
mod tune;
mod validate;
mod values;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use exit::{Exit, exit_of};
use gqa2mla::files::interrupted;
use gqa2mla::runtime::RuntimeError;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

/// Rewrites ONNX language models from grouped-query attention to multi-head latent attention, and proves it.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing to rewrite or only part of the attentions recognised,
/// 4 validation failed.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object in place of text.
    #[arg(long, global = true)]
    json: bool,
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
    Validate(validate::Validate),
    Bench(bench::Bench),
    Print(print::Print),
    Diff(diff::Diff),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Exit code of a run that is ended by a signal, minus the signal number, as in shells.
const STOPPED: i32 = 128;

/// Parses the command line and runs it.
pub fn run() -> ExitCode {
    if let Err(error) = clear_when_stopped() {
        screen::complain(&format!(
            "warning: a run that is stopped may leave a hidden folder: {error}"
        ));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let json = cli.json;
    let result = match cli.command {
        Command::Inspect(command) => command.run(json),
        Command::Calibrate(command) => command.run(json),
        Command::Compare(command) => command.run(json),
        Command::Rewrite(command) => command.run(json),
        #[cfg(feature = "train")]
        Command::Tune(command) => command.run(json),
        #[cfg(feature = "train")]
        Command::Factors(command) => command.run(json),
        Command::Validate(command) => command.run(json),
        Command::Bench(command) => command.run(json),
        Command::Print(command) => command.run(json),
        Command::Diff(command) => command.run(json),
        Command::Completions(command) => command.run(Cli::command()),
        Command::Man(command) => command.run(Cli::command()),
    };
    for path in interrupted::cleared() {
        screen::complain(&format!(
            "removed {}, which a run that was killed has left",
            path.display()
        ));
    }
    match result {
        Ok(exit) => match screen::broken() {
            None => exit.into(),
            Some(error) => {
                screen::complain(&format!("error: writing to standard output: {error}"));
                Exit::Failed.into()
            }
        },
        Err(error) => {
            let exit = exit_of(&error);
            if json {
                screen::emit_json(
                    &json!({ "status": "failed", "exit_code": exit as u8, "error": format!("{error:#}") }),
                );
            }
            screen::complain(&format!("error: {error:#}"));
            exit.into()
        }
    }
}

/// Installs signal handlers: a run that is stopped removes incomplete outputs, and reports kept work from which the
/// next run resumes.
fn clear_when_stopped() -> std::io::Result<()> {
    gqa2mla::files::mapped::report_truncation()?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new().spawn(move || {
        if let Some(signal) = signals.forever().next() {
            interrupted::clear();
            for (folder, bytes) in interrupted::unfinished() {
                screen::complain(&format!(
                    "stopped; {} keeps what is done ({}): the same command goes on from there, and --clean removes it",
                    folder.display(),
                    screen::size(bytes)
                ));
            }
            // Exits immediately, because exit handlers of libraries could conflict with running threads.
            low_level::exit(STOPPED + signal);
        }
    })?;
    Ok(())
}

/// Prints a message of clap: help and version to standard output, or else the error, as JSON if requested.
fn usage(error: &clap::Error) -> ExitCode {
    if error.kind() == clap::error::ErrorKind::DisplayVersion {
        screen::emit(&version());
        return Exit::Done.into();
    }
    let asked_for = std::env::args_os().any(|a| a == "--json");
    if error.use_stderr() && asked_for {
        let text = error.render().to_string();
        screen::emit_json(
            &json!({ "status": "failed", "exit_code": Exit::Usage as u8, "error": text.trim_end() }),
        );
    }
    let _ = error.print();
    if error.use_stderr() {
        Exit::Usage.into()
    } else {
        Exit::Done.into()
    }
}

/// The version of this tool, and the default runtime.
fn version() -> String {
    let runtime = match gqa2mla::runtime::version() {
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
