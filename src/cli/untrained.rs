use std::ffi::OsString;

use clap::Args;

use crate::cli::exit::{Exit, UsageError};
use crate::cli::screen::Screen;

/// Not built in: it needs the feature `train`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct Untrained {
    /// Whatever the command takes.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<OsString>,
}

impl Untrained {
    /// Tells how to get the command.
    pub fn run(self, _: &Screen) -> anyhow::Result<Exit> {
        let words = "this gqa2mla is built without training: build it with --features train";
        Err(UsageError(words.to_owned()).into())
    }
}
