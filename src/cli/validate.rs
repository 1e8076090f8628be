use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use gqa2mla::model::load::load;
use gqa2mla::ports::{Subject, subject};
use gqa2mla::runtime::open;
use gqa2mla::validate::compare::Comparison;
use gqa2mla::validate::{ValidateOptions, validate};
use gqa2mla_passes::onnx::ModelProto;
use serde_json::{Value, json};

use super::Outcome;
use super::runtime::RuntimeArgs;
use super::screen::{emit, emit_json, progress, table};

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
    how: ValidateArgs,
}

/// What to ask of the comparison.
#[derive(Debug, Clone, Args)]
pub struct ValidateArgs {
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// Token ids to run, comma-separated, in place of random ones.
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    tokens: Option<Vec<i64>>,
    /// Largest logit difference that passes, relative to the largest logit: 1e-3 in single, 2e-2 in half precision.
    #[arg(long, value_name = "RATIO")]
    tolerance: Option<f64>,
    /// Seed of the random token ids.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Validate {
    pub fn run(self, json: bool) -> anyhow::Result<Outcome> {
        let (original, rewritten) = (load(&self.original)?, load(&self.rewritten)?);
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

impl ValidateArgs {
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
            tolerance: self.tolerance,
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
