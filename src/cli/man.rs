use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};

use crate::cli::exit::Exit;
use crate::cli::screen::Screen;
use crate::cli::values::output;

/// Write the manual pages, one for each command, into a folder.
///
/// Example: gqa2mla man -o out/man
#[derive(Debug, Args)]
pub struct Man {
    /// The folder, such as ~/.local/share/man/man1.
    #[arg(short, long, value_name = "FOLDER", value_parser = output())]
    out: PathBuf,
}

impl Man {
    pub fn run(self, command: Command, screen: &Screen) -> anyhow::Result<Exit> {
        let shown = || self.out.display().to_string();
        fs::create_dir_all(&self.out).with_context(shown)?;
        clap_mangen::generate_to(command, &self.out).with_context(shown)?;
        screen.say(&format!("wrote the manual pages to {}", shown()));
        Ok(Exit::Done)
    }
}
