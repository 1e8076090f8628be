use std::ffi::OsString;

use clap::Args;

use crate::cli::exit::{Exit, UsageError};
use crate::cli::screen::Screen;

/// Not available: this program was built without the feature `train`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct Untrained {
    /// The arguments of the command, which are ignored.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<OsString>,
}

/// How to get a program with training.
pub const UNTRAINED: &str =
    "this gqa2mla is built without training: build it with --features train";

impl Untrained {
    /// The error that says how to build the program with the command.
    pub fn run(self, _: &Screen) -> anyhow::Result<Exit> {
        Err(UsageError(UNTRAINED.to_owned()).into())
    }
}
