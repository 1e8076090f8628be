use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use gqa2mla_passes::analysis::Analysis;
use gqa2mla_passes::operators::Target;
use serde_json::json;

use crate::cli::exit::Exit;
use crate::cli::reach::reach_text;
use crate::cli::runtime::RuntimeArgs;
use crate::cli::screen::Screen;
use crate::cli::text::TextArgs;
use crate::cli::values::{length, output};
use crate::files::foreseen::check_file;
use crate::files::interrupted::{checkpoint_of, keep_file};
use crate::files::load::load;
use crate::files::outputs::{OtherFile, check_inputs, check_other};
use crate::fit::calibrate::{Analyzed, calibrate, store};
use crate::fit::context::Context;
use crate::fit::reach::Reach;
use crate::report::counted;
use crate::validate::ports::LanguageModel;

/// Run a model on text and store statistics of its keys, values and queries, for `rewrite --calibration`.
///
/// The text should be similar to the text that the model will read: this matters more than its length. An interrupted
/// run resumes if it is started again with the same options.
///
/// Example: gqa2mla calibrate fixtures/optimum-llama --token-ids fixtures/tokens.json -o out/stats
#[derive(Debug, Args)]
pub struct Calibrate {
    /// A .onnx file, or a folder with one model.
    model: PathBuf,
    #[command(flatten, next_help_heading = "Text")]
    text: TextArgs,
    /// The statistics file.
    #[arg(short, long, value_name = "OUT", value_parser = output())]
    out: PathBuf,
    /// Read at most this many tokens.
    ///
    /// Factors need at least 10 tokens for each dimension of the cached keys or values of a layer; from 50 on, more text
    /// hardly changes them.
    #[arg(
        long,
        default_value_t = 16_384,
        value_name = "N",
        help_heading = "Text"
    )]
    calibration_tokens: usize,
    /// Tokens per sequence.
    ///
    /// The default is 1024, or the model's context if that is shorter.
    #[arg(long, value_name = "L", value_parser = length, help_heading = "Text")]
    length: Option<usize>,
    /// Replace a file that gqa2mla did not write.
    #[arg(long)]
    force: bool,
    #[command(flatten, next_help_heading = "Run")]
    runtime: RuntimeArgs,
}

impl Calibrate {
    /// The statistics of a run that was stopped, from which the next one goes on.
    fn partial(&self) -> PathBuf {
        checkpoint_of(&self.out)
    }

    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        let started = Instant::now();
        let model = load(&self.model)?;
        check_inputs(&model, &self.out)?;
        let read: Vec<&Path> = self.text.files().collect();
        let partial = self.partial();
        for file in [&self.out, &partial] {
            check_other(file, &read, OtherFile::Statistics, self.force)?;
        }
        check_file(&self.out)?;
        let shown = model.path.display().to_string();
        let subject = LanguageModel::of(&model.model.proto).with_context(|| shown.clone())?;
        let length = Context::fitted(self.length, &model).with_context(|| shown.clone())?;
        let text = self.text.read(
            &self.model,
            subject.known_vocabulary(),
            self.calibration_tokens,
            length,
        )?;
        let text = text.ok_or_else(crate::cli::exit::no_text)?;
        let analysis = Analysis::of(&model.model, Target::MatMul).with_context(|| shown.clone())?;
        let unfinished = keep_file(&partial);
        let statistics = calibrate(
            Analyzed {
                model: &model,
                analysis: &analysis,
            },
            &text,
            &self.runtime.options(true),
            Some(&partial),
            &mut screen.progress("reading text", "token"),
        )
        .with_context(|| shown.clone())?;
        store::save(&statistics, &self.out)?;
        unfinished.remove();
        let reach = Reach::of(&statistics);
        let seconds = started.elapsed().as_secs_f64();
        let (out, layers) = (self.out.display().to_string(), statistics.layers.len());
        screen.show(
            || {
                format!(
                    "{}, {} in sequences of {}, {seconds:.1} s\n{}wrote {out}",
                    counted(layers, "attention"),
                    counted(text.ids.len(), "token"),
                    text.length,
                    reach_text(&reach),
                )
            },
            || {
                json!({
                    "model": shown, "statistics": out, "tokens": text.ids.len(), "length": text.length,
                    "layers": layers, "statistics_reach": reach, "seconds": seconds,
                })
            },
        );
        Ok(Exit::Done)
    }
}
