use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use gqa2mla::compress::compressor::METADATA;
use gqa2mla::files::load::{LoadedModel, load};
use gqa2mla::fit::context::Context;
use gqa2mla::fit::layer_errors::{LayerError, layer_errors};
use gqa2mla::measure::measure::measure;
use gqa2mla::measure::quality::Quality;
use gqa2mla::report::grouped;
use gqa2mla::runtime::{RuntimeOptions, open};
use gqa2mla::validate::compare::Comparison;
use gqa2mla::validate::ports::{Subject, subject};
use gqa2mla::validate::{ValidateOptions, validate};
use gqa2mla_passes::onnx::ModelProto;
use serde_json::{Value, json};

use crate::cli::Outcome;
use crate::cli::runtime::RuntimeArgs;
use crate::cli::screen::{emit, emit_json, progress, table};
use crate::cli::text::TextArgs;

/// Run both models through the same prompts and compare their logits and cache sizes.
///
/// Prefill, single steps, a step of several tokens on a cache, and a batch with left padding; first with the
/// runtime's own graph optimizations off, which is the proof, then with them on.
///
/// Example: gqa2mla validate fixtures/optimum-llama out/model.onnx
#[derive(Debug, Args)]
pub struct Validate {
    /// The model before.
    original: PathBuf,
    /// The model after.
    rewritten: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// Score at most this many tokens of the text.
    #[arg(long, default_value_t = 8192, value_name = "N")]
    text_tokens: usize,
    /// Tokens of one sequence of the text, at most; the default is the maximum in config.json or genai_config.json beside
    /// the model, or else 4096.
    #[arg(long, value_name = "L")]
    text_length: Option<usize>,
    #[command(flatten)]
    how: ValidateArgs,
}

/// Tolerance where activations are rounded to 8 bits: a step is 1/127 of the largest of a block.
const ROUNDED_ACTIVATIONS: f64 = 2e-2;

/// What to ask of the comparison.
#[derive(Debug, Clone, Args)]
pub struct ValidateArgs {
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// Token ids to run, comma-separated, in place of random ones.
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    tokens: Option<Vec<i64>>,
    /// Largest logit difference that passes, relative to the largest logit: 1e-3 in single precision, 2e-2 in half
    /// precision and where activations are quantized.
    #[arg(long, value_name = "RATIO")]
    tolerance: Option<f64>,
    /// Seed of the random token ids.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Validate {
    pub fn run(self, json: bool) -> anyhow::Result<Outcome> {
        let (original, rewritten) = (load(&self.original)?, load(&self.rewritten)?);
        if self.text.source().is_some() {
            return self.on_text(&original, &rewritten, json);
        }
        let report = self.how.compare(
            (&original.path, &original.model.proto),
            (&rewritten.path, &rewritten.model.proto),
        )?;
        if json {
            emit_json(&report.json());
        } else {
            emit(&report.text(false));
        }
        Ok(if report.passed() {
            Outcome::Done
        } else {
            Outcome::Rejected
        })
    }
}

impl Validate {
    /// What the rewritten model loses on a text, read through its cache.
    fn on_text(
        &self,
        original: &LoadedModel,
        rewritten: &LoadedModel,
        json: bool,
    ) -> anyhow::Result<Outcome> {
        let vocabulary = subject(&original.model.proto)?.vocabulary;
        let served = Context::of(self.text_length, &original.path);
        let text = self
            .text
            .read(vocabulary, self.text_tokens, served.positions)?
            .ok_or_else(crate::cli::no_text)?;
        let runtime = self.how.runtime.options(true);
        let quality = measure(
            original,
            rewritten,
            &text,
            &runtime,
            &mut progress("reading"),
        )?;
        let first = text.sequences().next().unwrap_or_default();
        let layers = layer_errors(original, rewritten, first, &runtime)?;
        if json {
            emit_json(&json!({
                "quality": quality, "perplexity_increase": quality.increase(), "layers": layers,
                "made_by": made_by(rewritten),
            }));
        } else {
            emit(&format!(
                "{}\n\n{}",
                layers_text(&layers, made_by(rewritten).as_ref()),
                quality_text(&quality)
            ));
        }
        Ok(Outcome::Done)
    }
}

/// What the rewritten model says of how it was made.
fn made_by(model: &LoadedModel) -> Option<Value> {
    let mut properties = model.model.proto.metadata_props.iter();
    let note = properties.find(|p| p.key() == METADATA)?;
    serde_json::from_str(note.value()).ok()
}

/// Relative errors of scores and outputs, for people: what the spectra predicted when the model was made, and what is
/// measured.
fn layers_text(layers: &[LayerError], made_by: Option<&Value>) -> String {
    let mut table = table(&[
        "layer",
        "scores, predicted",
        "measured",
        "outputs, predicted",
        "measured",
    ]);
    let shown = |error: Option<f64>| error.map_or_else(|| "-".to_owned(), |e| format!("{e:.4}"));
    let predicted = |layer: usize, side: &str| {
        let mut known = made_by?["layers"].as_array()?.iter();
        let of_layer = known.find(|l| l["layer"] == layer)?;
        // A spectrum tells of squares.
        of_layer[side].as_f64().map(f64::sqrt)
    };
    for layer in layers {
        table.add_row([
            layer.layer.to_string(),
            shown(predicted(layer.layer, "predicted_key_loss")),
            shown(layer.scores),
            shown(predicted(layer.layer, "predicted_value_loss")),
            shown(layer.outputs),
        ]);
    }
    format!(
        "{table}\nrelative, root mean square. Predicted: of this layer alone, before any reconstruction. Measured: in the running\nmodels, where the errors of earlier layers are in those of later ones"
    )
}

/// For people.
pub fn quality_text(quality: &Quality) -> String {
    let positions = positions_text(quality);
    format!(
        "perplexity {:.3} -> {:.3} ({:+.2}%), KL {:.4}, top-1 agreement {:.3}, on {} tokens\nmeasured cache: {} -> {} bytes a token{positions}",
        quality.original_perplexity,
        quality.rewritten_perplexity,
        100.0 * quality.increase(),
        quality.mean_kl,
        quality.top1_agreement,
        grouped(quality.tokens as u64),
        quality.original_cache_bytes,
        quality.rewritten_cache_bytes,
    )
}

/// The same by position, where there is more than one range of positions.
fn positions_text(quality: &Quality) -> String {
    if quality.positions.len() < 2 {
        return String::new();
    }
    let header = [
        "positions",
        "tokens",
        "perplexity",
        "rewritten",
        "increase",
        "KL",
        "top-1",
    ];
    let mut table = table(&header);
    for bin in &quality.positions {
        table.add_row([
            format!("{} to {}", bin.first, bin.last),
            grouped(bin.tokens as u64),
            format!("{:.3}", bin.original_perplexity),
            format!("{:.3}", bin.rewritten_perplexity),
            format!("{:+.2}%", 100.0 * bin.increase()),
            format!("{:.4}", bin.mean_kl),
            format!("{:.3}", bin.top1_agreement),
        ]);
    }
    format!("\n\n{table}")
}

impl ValidateArgs {
    /// Whether the user said what passes.
    pub fn has_tolerance(&self) -> bool {
        self.tolerance.is_some()
    }

    /// Where the models run.
    pub fn runtime(&self, optimize: bool) -> RuntimeOptions {
        self.runtime.options(optimize)
    }

    /// Compares two models: optimizations off for the proof, and on for a second look.
    pub fn compare(
        &self,
        original: (&Path, &ModelProto),
        rewritten: (&Path, &ModelProto),
    ) -> anyhow::Result<Report> {
        let subjects = (
            subject(original.1).with_context(|| original.0.display().to_string())?,
            subject(rewritten.1).with_context(|| rewritten.0.display().to_string())?,
        );
        let proof = self.run(original.0, rewritten.0, &subjects, false)?;
        let optimized = match proof.original_runtime.starts_with("ONNX Runtime") {
            true => Some(self.run(original.0, rewritten.0, &subjects, true)?),
            false => None,
        };
        Ok(Report { proof, optimized })
    }

    fn run(
        &self,
        original: &Path,
        rewritten: &Path,
        subjects: &(Subject, Subject),
        optimize: bool,
    ) -> anyhow::Result<Comparison> {
        let options = self.runtime.options(optimize);
        let mut before =
            open(original, &options).with_context(|| original.display().to_string())?;
        let mut after =
            open(rewritten, &options).with_context(|| rewritten.display().to_string())?;
        let asked = ValidateOptions {
            vocabulary: subjects.0.vocabulary,
            tokens: self.tokens.clone(),
            seed: self.seed,
            right_padded_only: subjects.0.right_padded_only,
            tolerance: self
                .tolerance
                .or(subjects.0.rounds_activations.then_some(ROUNDED_ACTIVATIONS)),
        };
        let what = if optimize {
            "validating, optimized"
        } else {
            "validating"
        };
        Ok(validate(
            before.as_mut(),
            after.as_mut(),
            &subjects.0.interface,
            &subjects.1.interface,
            &asked,
            &mut progress(what),
        )?)
    }
}

/// Both comparisons.
pub struct Report {
    proof: Comparison,
    optimized: Option<Comparison>,
}

impl Report {
    /// Whether both keep within the tolerance.
    pub fn passed(&self) -> bool {
        self.proof.passed() && self.optimized.as_ref().is_none_or(Comparison::passed)
    }

    /// Whether every run gave finite logits to compare.
    pub fn is_finite(&self) -> bool {
        let all = [Some(&self.proof), self.optimized.as_ref()];
        let mut steps = all.into_iter().flatten().flat_map(|c| &c.steps);
        steps.all(|s| s.finite && s.positions > 0)
    }

    /// For people. Of a smaller latent, `approximate`, nothing else is expected than that it differs.
    pub fn text(&self, approximate: bool) -> String {
        let proof = &self.proof;
        let mut table = table(&[
            "scenario",
            "run",
            "batch",
            "tokens",
            "past",
            "max |d logit|",
            "max |logit|",
            "ratio",
            "KL",
            "top-1",
        ]);
        for step in &proof.steps {
            table.add_row([
                step.scenario.clone(),
                step.step.clone(),
                step.batch.to_string(),
                step.tokens.to_string(),
                step.past.to_string(),
                format!("{:.2e}", step.max_delta),
                format!("{:.2}", step.max_logit),
                format!("{:.2e}", step.ratio),
                format!("{:.2e}", step.mean_kl),
                format!("{:.3}", step.top1_agreement),
            ]);
        }
        let mut text = format!("{table}\n\n");
        for comparison in [Some(proof), self.optimized.as_ref()].into_iter().flatten() {
            text.push_str(&format!(
                "{}: {} (largest ratio {:.2e}, tolerance {:.0e}, KL {:.2e}, top-1 agreement {:.3})\n",
                comparison.rewritten_runtime,
                match (comparison.passed(), approximate) {
                    (true, _) => "passed",
                    (false, true) => "differs, as an approximation does",
                    (false, false) => "FAILED",
                },
                comparison.max_ratio(),
                comparison.tolerance,
                comparison.mean_kl(),
                comparison.top1_agreement(),
            ));
        }
        text.push_str(&format!(
            "measured cache: {} -> {} bytes a token\n",
            proof.original_cache_bytes, proof.rewritten_cache_bytes
        ));
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({ "passed": self.passed(), "proof": self.proof, "optimized": self.optimized })
    }
}
