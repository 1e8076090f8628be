//! The options of a validation, and its output.

use clap::Args;
use serde_json::{Value, json};

use crate::cli::exit::UsageError;
use crate::cli::runtime::RuntimeArgs;
use crate::cli::screen::table;
use crate::cli::values::ratio;
use crate::cli::verdict::{bad, good};
use crate::report::{measured, percent, small};
use crate::runtime::RuntimeOptions;
use crate::validate::proof::{Proof, ProofOptions};

/// The options of a validation.
#[derive(Debug, Clone, Args)]
pub struct ProofArgs {
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// Token ids to use instead of random ones: 1,2,3.
    #[arg(
        hide_short_help = true,
        long,
        value_delimiter = ',',
        value_name = "IDS",
        allow_negative_numbers = true
    )]
    prompt_ids: Option<Vec<i64>>,
    /// Largest accepted logit difference, relative to the largest logit.
    ///
    /// The default is 1e-3 in single precision, 2e-2 in half precision and for quantized activations, 1e-1 for a cache
    /// of 8-bit integers, and 1 for one of 6 or 4 bits.
    #[arg(hide_short_help = true, long, value_name = "RATIO", value_parser = ratio, allow_negative_numbers = true)]
    tolerance: Option<f64>,
    /// Seed of the random token ids; the default is 0.
    #[arg(hide_short_help = true, long)]
    seed: Option<u64>,
}

impl ProofArgs {
    /// The options for the library.
    pub fn options(&self) -> ProofOptions {
        ProofOptions {
            tokens: self.prompt_ids.clone(),
            seed: self.seed.unwrap_or(0),
            tolerance: self.tolerance,
        }
    }

    /// Refuses options that only apply to a comparison of logits.
    ///
    /// # Errors
    /// [`UsageError`] names the first such option.
    pub fn only_runs(&self) -> Result<(), UsageError> {
        self.unused("a text is measured")
    }

    /// Refuses options of the comparison of logits if there is none, because of `why`.
    ///
    /// # Errors
    /// [`UsageError`] names the first such option.
    pub fn unused(&self, why: &str) -> Result<(), UsageError> {
        let given = [
            ("--tolerance", self.tolerance.is_some()),
            ("--prompt-ids", self.prompt_ids.is_some()),
            ("--seed", self.seed.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(UsageError(format!(
                "{name} is for the comparison of logits, and {why}: leave out one of them"
            ))),
            None => Ok(()),
        }
    }

    /// The runtime options, with graph optimizations on.
    pub fn runtime(&self) -> RuntimeOptions {
        self.runtime.options(true)
    }
}

/// All runs and both verdicts as text. For an `approximate` model, differences are expected.
pub fn proof_text(proof: &Proof, approximate: bool) -> String {
    let steps = &proof.unoptimized.steps;
    let mut text = String::new();
    for steps in steps.chunk_by(|a, b| a.scenario == b.scenario) {
        let mut table = table(&["run", "tokens", "past", "difference", "KL", "top-1"]);
        for step in steps {
            table.add_row([
                step.step.clone(),
                step.tokens.to_string(),
                step.past.to_string(),
                small(step.ratio),
                small(step.mean_kl),
                percent(step.top1_agreement),
            ]);
        }
        let scenario = steps.first().map_or("", |step| &step.scenario);
        text.push_str(&format!("{scenario}:\n{table}\n\n"));
    }
    for (comparison, optimized) in proof.comparisons().zip([false, true]) {
        let changed = optimized && !proof.is_stable();
        text.push_str(&format!(
            "{}: {} (largest difference {} of the largest logit, tolerance {}, KL {}, top-1 agreement {})\n",
            comparison.rewritten_runtime,
            match (comparison.passed(), approximate) {
                (true, _) => good("passed"),
                (false, true) if changed => bad("FAILED: the optimizations change what the model computes"),
                (false, true) => "differs, as an approximation does".to_owned(),
                (false, false) => bad("FAILED"),
            },
            small(comparison.max_ratio()),
            small(comparison.tolerance),
            small(comparison.mean_kl()),
            percent(comparison.top1_agreement()),
        ));
    }
    text.push_str(&format!(
        "measured cache: {} -> {} bytes a token\n",
        measured(proof.unoptimized.original_cache_bytes),
        measured(proof.unoptimized.rewritten_cache_bytes)
    ));
    text
}

/// The same as JSON.
pub fn proof_json(proof: &Proof) -> Value {
    json!({ "passed": proof.passed(), "proof": proof.unoptimized, "optimized": proof.optimized })
}
