use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use gqa2mla_passes::analysis::Analysis;
use gqa2mla_passes::operators::Target;
use serde_json::{Value, json};

use crate::cli::bar::Moment;
use crate::cli::exit::{Exit, no_text};
use crate::cli::proof::{ProofArgs, proof_json, proof_text};
use crate::cli::quality::{layers_text, quality_text};
use crate::cli::screen::Screen;
use crate::cli::stages::{MEASURING_LAYERS, validating};
use crate::cli::text::TextArgs;
use crate::cli::values::length;
use crate::compress::metadata::METADATA;
use crate::files::load::{LoadedModel, load};
use crate::fit::calibrate::Analyzed;
use crate::fit::context::Context;
use crate::fit::layer_errors::layer_errors;
use crate::measure::on_text::measure;
use crate::validate::ValidateError;
use crate::validate::ports::LanguageModel;
use crate::validate::proof::prove;

/// Run both models on the same prompts and compare their logits and cache sizes.
///
/// The runs are a prefill, single decode steps, a step of several tokens with a past, and a batch with left padding.
/// They are repeated: first without the runtime's graph optimizations, which could hide an error of the graph, then
/// with them.
///
/// Example: gqa2mla validate fixtures/optimum-llama out/model.onnx
#[derive(Debug, Args)]
pub struct Validate {
    /// The original model.
    original: PathBuf,
    /// The rewritten model.
    rewritten: PathBuf,
    #[command(flatten, next_help_heading = "Text")]
    text: TextArgs,
    /// Measure on at most this many tokens of the text.
    #[arg(long, default_value_t = 8192, value_name = "N", help_heading = "Text")]
    test_tokens: usize,
    /// Largest number of tokens per sequence of the text.
    ///
    /// The default is the maximum in genai_config.json or config.json beside the model, or else 4096.
    #[arg(long, value_name = "L", value_parser = length, help_heading = "Text")]
    length: Option<usize>,
    #[command(flatten, next_help_heading = "Run")]
    how: ProofArgs,
}

impl Validate {
    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        let (original, rewritten) = (load(&self.original)?, load(&self.rewritten)?);
        if self.text.is_given() {
            self.how.only_runs()?;
            return self.on_text(&original, &rewritten, screen);
        }
        let mut bar = screen.bar();
        let proof = prove(
            &original,
            &rewritten,
            &self.how.runtime(),
            &self.how.options(),
            &mut |optimized, done, total| {
                bar.say(Moment::of(validating(optimized), done, total, "run"))
            },
        )
        .map_err(|error| about_both(error, &original, &rewritten))?;
        screen.show(|| proof_text(&proof, false), || proof_json(&proof));
        Ok(match proof.passed() {
            true => Exit::Done,
            false => Exit::Rejected,
        })
    }

    /// Measures the quality of the rewritten model on the text.
    fn on_text(
        &self,
        original: &LoadedModel,
        rewritten: &LoadedModel,
        screen: &Screen,
    ) -> anyhow::Result<Exit> {
        let shown = || original.path.display().to_string();
        let subject = LanguageModel::of(&original.model.proto).with_context(shown)?;
        let vocabulary = subject.known_vocabulary();
        let length = Context::of(self.length, original).with_context(shown)?;
        let length = length.positions;
        let text = self
            .text
            .read(&self.original, vocabulary, self.test_tokens, length)?
            .ok_or_else(no_text)?;
        let runtime = self.how.runtime();
        let quality = measure(
            original,
            rewritten,
            &text,
            &runtime,
            &mut screen.progress("reading text with both models", "token"),
        )
        .map_err(|error| about_both(error, original, rewritten))?;
        let first = text.sequences().next().unwrap_or_default();
        let analysis = Analysis::of(&original.model, Target::MatMul)
            .with_context(|| original.path.display().to_string())?;
        let analyzed = Analyzed {
            model: original,
            analysis: &analysis,
        };
        let layers = layer_errors(
            analyzed,
            rewritten,
            first,
            &runtime,
            &mut screen.progress(MEASURING_LAYERS, "run"),
        )
        .with_context(|| incomparable(original, rewritten))?;
        let made_by = made_by(rewritten);
        screen.show(
            || {
                let layers = layers_text(&layers, made_by.as_ref());
                format!(
                    "{layers}{}\nmeasured on text, which judges nothing: without a text the logits are compared",
                    quality_text(&quality).trim_end()
                )
            },
            || {
                json!({
                    "quality": quality, "perplexity_increase": quality.increase(), "layers": layers,
                    "made_by": made_by,
                })
            },
        );
        Ok(Exit::Done)
    }
}

/// The error of a comparison with the names of both models, unless it names the file or the option that it is about.
fn about_both(
    error: ValidateError,
    original: &LoadedModel,
    rewritten: &LoadedModel,
) -> anyhow::Error {
    match error {
        ValidateError::Open { .. } | ValidateError::Token { .. } | ValidateError::Runtime(_) => {
            error.into()
        }
        other => anyhow::Error::from(other).context(incomparable(original, rewritten)),
    }
}

/// The beginning of the error of a comparison: both models.
fn incomparable(original: &LoadedModel, rewritten: &LoadedModel) -> String {
    format!(
        "{} and {} cannot be compared",
        original.path.display(),
        rewritten.path.display()
    )
}

/// The metadata entry of the rewritten model that describes how it was made.
fn made_by(model: &LoadedModel) -> Option<Value> {
    let mut properties = model.model.proto.metadata_props.iter();
    let note = properties.find(|p| p.key() == METADATA)?;
    serde_json::from_str(note.value()).ok()
}
