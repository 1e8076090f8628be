//! Runs two models through the same scenarios, step by step, each with its own caches.

use crate::runtime::Session;
use crate::validate::compare::{Comparison, StepLabel, compare_step, default_tolerance};
use crate::validate::error::{ValidateError, Which};
use crate::validate::feed::bounded;
use crate::validate::interface::Interface;
use crate::validate::runner::Runner;
use crate::validate::scenario::{ScenarioOptions, scenarios};

/// Upper bound of the number of tokens per row in a scenario.
const LONGEST_SCENARIO: usize = 1 << 12;

/// The options of a validation.
#[derive(Debug, Clone)]
pub struct ValidateOptions {
    /// Upper bound of random token ids.
    pub vocabulary: usize,
    /// Token ids to use instead of random ones.
    pub tokens: Option<Vec<i64>>,
    /// Seed of the random token ids.
    pub seed: u64,
    /// Whether the graph computes positions itself (`GroupQueryAttention` without position ids), so that left padding
    /// would shift them.
    pub right_padded_only: bool,
    /// The tolerance of `max |delta logit| / max |logit|`; `None`: 1e-3 for fp32, 2e-2 for fp16 and bf16.
    pub tolerance: Option<f64>,
}

/// Runs both models through every scenario that their inputs allow and compares their logits. `progress` is called with
/// (done, total) runs.
///
/// # Errors
/// [`ValidateError`] if a model fails or the logits have different shapes. Different logits are not an error; see
/// [`Comparison::passed`].
pub fn validate(
    original: &mut dyn Session,
    rewritten: &mut dyn Session,
    original_interface: &Interface,
    rewritten_interface: &Interface,
    options: &ValidateOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Comparison, ValidateError> {
    // A model with a constant batch size gets that number of rows.
    let rows = original_interface.fixed_batch.unwrap_or(1);
    let tokens = original_interface.fixed_length().unwrap_or(1);
    bounded("batch", &[rows, LONGEST_SCENARIO.max(tokens)])?;
    let plan = scenarios(
        original_interface,
        &ScenarioOptions {
            vocabulary: options.vocabulary,
            given: options.tokens.as_deref(),
            seed: options.seed,
            right_padded_only: options.right_padded_only,
        },
    );
    let total = plan.iter().map(|scenario| scenario.steps.len()).sum();
    let begin = "the first run";
    let mut original =
        Runner::new(original, original_interface).map_err(in_model(Which::Original, begin))?;
    let mut rewritten =
        Runner::new(rewritten, rewritten_interface).map_err(in_model(Which::Rewritten, begin))?;
    let mut steps = Vec::with_capacity(total);
    let mut cache_bytes = None;
    for scenario in &plan {
        original.start(&scenario.pads)?;
        rewritten.start(&scenario.pads)?;
        for step in &scenario.steps {
            progress(steps.len(), total);
            let place = format!("{}, {}", scenario.name, step.name);
            let label = StepLabel {
                scenario: &scenario.name,
                step: &step.name,
                tokens: step.length,
                past: original.past(),
                pads: &scenario.pads,
            };
            let p = original
                .step(&step.tokens, step.length)
                .map_err(in_model(Which::Original, &place))?;
            let q = rewritten
                .step(&step.tokens, step.length)
                .map_err(in_model(Which::Rewritten, &place))?;
            steps.push(compare_step(&label, &p, &q)?);
        }
        // Cache bytes are measured in the first scenario, without padding.
        cache_bytes.get_or_insert((
            original.cache_bytes_per_token(),
            rewritten.cache_bytes_per_token(),
        ));
    }
    progress(total, total);
    let (original_cache_bytes, rewritten_cache_bytes) = cache_bytes.unwrap_or_default();
    Ok(Comparison {
        original_runtime: original.describe(),
        rewritten_runtime: rewritten.describe(),
        steps,
        original_cache_bytes,
        rewritten_cache_bytes,
        tolerance: options
            .tolerance
            .unwrap_or_else(|| default_tolerance(original_interface.logits_element)),
    })
}

fn in_model<'a>(which: Which, step: &'a str) -> impl FnOnce(ValidateError) -> ValidateError + 'a {
    move |cause| ValidateError::Model {
        which,
        step: step.to_owned(),
        cause: Box::new(cause),
    }
}
