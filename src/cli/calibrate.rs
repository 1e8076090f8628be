use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use gqa2mla::files::load::load;
use gqa2mla::fit::calibrate::{calibrate, store};
use gqa2mla::report::grouped;
use gqa2mla::validate::ports::subject;
use serde_json::json;

use crate::cli::Outcome;
use crate::cli::factors::{FEW, few_tokens};
use crate::cli::runtime::RuntimeArgs;
use crate::cli::screen::{complain, emit, emit_json, progress};
use crate::cli::text::TextArgs;

/// Read text with a model and keep statistics of its keys, values and queries, for `rewrite --calibration`.
///
/// The text should be of the kind that the model will read: its domain matters more than its length. A run that is
/// stopped goes on where it was when it is started again with the same options.
///
/// Example: gqa2mla calibrate fixtures/optimum-llama --token-ids fixtures/tokens.json -o out/stats
#[derive(Debug, Args)]
pub struct Calibrate {
    /// A .onnx file, or a folder that holds one.
    model: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// The statistics file.
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    /// Read at most this many tokens; 10 for each cached number of a layer are enough.
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    tokens: usize,
    /// Tokens that are read together: as long as the contexts to be served.
    #[arg(long, default_value_t = 1024, value_name = "L")]
    length: usize,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

impl Calibrate {
    pub fn run(self, json: bool) -> anyhow::Result<Outcome> {
        let started = Instant::now();
        let model = load(&self.model)?;
        let shown = model.path.display().to_string();
        let subject = subject(&model.model.proto).with_context(|| shown.clone())?;
        let text = self
            .text
            .read(subject.vocabulary, self.tokens, self.length)?
            .ok_or_else(crate::cli::no_text)?;
        let mut partial = self.out.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let statistics = calibrate(
            &model,
            &text,
            &self.runtime.options(true),
            Some(&partial),
            &mut progress("calibrating"),
        )
        .with_context(|| shown.clone())?;
        store::save(&statistics, &self.out)?;
        let _ = std::fs::remove_file(&partial);
        let seconds = started.elapsed().as_secs_f64();
        let tokens = statistics.tokens_a_direction();
        if tokens < FEW {
            complain(&few_tokens(tokens));
        }
        let bound = statistics.bound_to_positions();
        let (out, layers) = (self.out.display().to_string(), statistics.layers.len());
        if json {
            emit_json(&json!({
                "model": shown, "statistics": out, "tokens": text.ids.len(), "length": text.length,
                "layers": layers, "tokens_a_direction": tokens, "bound_to_positions": bound, "seconds": seconds,
            }));
        } else {
            emit(&format!(
                "{layers} attentions, {} tokens in sequences of {}, {tokens:.1} for each direction, {seconds:.1} s\n{}wrote {out}",
                grouped(text.ids.len() as u64),
                text.length,
                bound_text(bound, text.length),
            ));
        }
        Ok(Outcome::Done)
    }
}

/// What is said of `bound` attentions whose rotation is not recognised; nothing where there are none.
pub fn bound_text(bound: usize, length: usize) -> String {
    match bound {
        0 => String::new(),
        _ => format!(
            "the rotation of {bound} attentions is not recognised: factors of their keys hold for the first {length} positions, which were read; read sequences as long as the contexts to be served\n"
        ),
    }
}
