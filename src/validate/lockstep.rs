//! Runs two models through the same scenarios in lock-step, each on its own caches.

use crate::runtime::Session;
use crate::validate::compare::{Comparison, StepLabel, compare_step, default_tolerance};
use crate::validate::error::{ValidateError, Which};
use crate::validate::feed::bounded;
use crate::validate::interface::Interface;
use crate::validate::runner::Runner;
use crate::validate::scenario::{ScenarioOptions, scenarios};

/// An upper bound of the tokens of one row in any scenario.
const LONGEST_SCENARIO: usize = 1 << 12;

/// The scenarios to run, and the tolerance that passes.
#[derive(Debug, Clone)]
pub struct ValidateOptions {
    /// Token ids are drawn below this.
    pub vocabulary: usize,
    /// Token ids to use in place of drawn ones.
    pub tokens: Option<Vec<i64>>,
    /// Seed of the draw.
    pub seed: u64,
    /// Whether the graph counts positions from the left by itself (`GroupQueryAttention` without position ids), so that
    /// padding on the left would shift them.
    pub right_padded_only: bool,
    /// The largest `max |delta logit| / max |logit|` that passes; none takes 1e-3 for single and 2e-2 for half precision.
    pub tolerance: Option<f64>,
}

/// Runs both models through every scenario their interfaces allow and compares them. `progress` is called with the
/// runs done and the runs there are.
///
/// # Errors
/// [`ValidateError`] when a model fails or the logits have different shapes. Logits that differ are no error: the
/// [`Comparison`] says so.
pub fn validate(
    original: &mut dyn Session,
    rewritten: &mut dyn Session,
    original_interface: &Interface,
    rewritten_interface: &Interface,
    options: &ValidateOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Comparison, ValidateError> {
    // A model that is fixed to a batch gets as many rows, each with its inputs.
    let rows = original_interface.fixed_batch.unwrap_or(1);
    bounded("batch", &[rows, LONGEST_SCENARIO])?;
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
        // A single row without padding: what a served sequence takes.
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
