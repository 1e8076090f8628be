use clap::{Args, Command};
use clap_complete::Shell;

use crate::cli::exit::Exit;
use crate::cli::screen::Screen;

/// Print a shell script that completes commands and options.
///
/// Example: gqa2mla completions bash
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(self, mut command: Command, screen: &Screen) -> anyhow::Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "gqa2mla", &mut script);
        screen.say(&String::from_utf8(script)?);
        Ok(Exit::Done)
    }
}
