use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::exit::Exit;
use crate::cli::screen::Screen;
use crate::cli::values::output;
use crate::files::load::load;
use crate::files::outputs::{OtherFile, check_inputs, check_model, check_other};
use crate::files::save::{output_path, save};
use crate::report::counted;
use crate::tune::exchange::{export, import};

/// Export the factors of a rewritten model to a safetensors file, or import trained ones.
///
/// Example: gqa2mla factors export out/half.onnx -o out/factors.safetensors
#[derive(Debug, Args)]
pub struct Factors {
    #[command(subcommand)]
    direction: Direction,
}

#[derive(Debug, Subcommand)]
enum Direction {
    /// Write the factors, each under the name of its initializer.
    Export {
        /// A model that `rewrite` has written.
        model: PathBuf,
        /// The safetensors file.
        #[arg(short, long, value_name = "OUT", value_parser = output())]
        out: PathBuf,
        /// Replace a file that gqa2mla did not write.
        #[arg(long)]
        force: bool,
    },
    /// Write the model with the factors of the file, which have the same names and shapes.
    Import {
        /// A model that `rewrite` has written.
        model: PathBuf,
        /// The safetensors file.
        factors: PathBuf,
        /// The output: a .onnx path, or a folder for the .onnx file.
        #[arg(short, long, value_name = "OUT", value_parser = output())]
        out: PathBuf,
        /// Replace a model that gqa2mla did not write.
        #[arg(long)]
        force: bool,
    },
}

impl Factors {
    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        let (count, out) = match self.direction {
            Direction::Export { model, out, force } => {
                let model = load(&model)?;
                check_inputs(&model, &out)?;
                check_other(&out, &[], OtherFile::Factors, force)?;
                (export(&model, &out)?, out)
            }
            Direction::Import {
                model,
                factors,
                out,
                force,
            } => {
                let mut model = load(&model)?;
                let count = import(&mut model, &factors)?;
                let out = output_path(&model.path, &out);
                check_model(&model, &out, force)?;
                save(&model, &out)?;
                (count, out)
            }
        };
        let out = out.display().to_string();
        screen.show(
            || format!("{}\nwrote {out}", counted(count, "factor")),
            || json!({ "factors": count, "out": out }),
        );
        Ok(Exit::Done)
    }
}
