//! The command `gqa2mla`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
