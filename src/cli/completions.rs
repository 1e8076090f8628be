use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::screen::emit;
use crate::cli::{Cli, Outcome};

/// Print a script that completes the command's words in a shell.
///
/// Example: gqa2mla completions bash
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> anyhow::Result<Outcome> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "gqa2mla", &mut script);
        emit(&String::from_utf8(script)?);
        Ok(Outcome::Done)
    }
}
