//! The command `gqa2mla`.

use std::process::ExitCode;

fn main() -> ExitCode {
    gqa2mla::cli::run(std::env::args_os()).into()
}
