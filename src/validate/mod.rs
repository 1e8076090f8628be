//! Proves a rewrite by running it: the original and the rewritten model go through the same scenarios in lock-step,
//! each on its own caches, and their logits are compared at every position.

pub mod compare;
mod feed;
pub mod interface;
mod pairing;
pub mod ports;
pub mod prompt;
mod roles;
pub mod runner;
pub mod scenario;

use crate::runtime::{RuntimeError, Session};
use compare::{Comparison, StepLabel, compare_step, default_tolerance, largest_index};
use interface::Interface;
use runner::Runner;
use scenario::{ScenarioOptions, scenarios};

/// More tokens than any scenario has in one row.
const LONGEST_SCENARIO: usize = 1 << 12;

/// What to put the models through, and what to ask of them.
#[derive(Debug, Clone)]
pub struct ValidateOptions {
    /// Token ids are drawn below this.
    pub vocabulary: usize,
    /// Token ids to use in place of drawn ones.
    pub tokens: Option<Vec<i64>>,
    /// Seed of the draw.
    pub seed: u64,
    /// The graph counts positions from the left by itself (`GroupQueryAttention` without position ids), so padding on
    /// the left would mean nothing.
    pub right_padded_only: bool,
    /// The largest `max |delta logit| / max |logit|` that passes; none takes 1e-3 for single and 2e-2 for half precision.
    pub tolerance: Option<f64>,
}

/// Why two models could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// An input that fits no role.
    #[error("input {name} is not understood: {reason}")]
    Input {
        /// The input.
        name: String,
        /// What does not fit.
        reason: String,
    },
    /// The interface is not that of a language model, or does not hold at run time.
    #[error("{0}")]
    Interface(String),
    /// The models' logits have different shapes.
    #[error(
        "{step}: the original's logits have shape {original:?}, the rewritten model's {rewritten:?}"
    )]
    Logits {
        /// The scenario and run.
        step: String,
        /// Shape of the original's logits.
        original: Vec<usize>,
        /// Shape of the rewritten model's.
        rewritten: Vec<usize>,
    },
    /// One of the models failed.
    #[error("the {which} model failed in {step}: {cause}")]
    Model {
        /// `original` or `rewritten`.
        which: &'static str,
        /// The scenario and run.
        step: String,
        /// Its error.
        cause: Box<ValidateError>,
    },
    /// The runtime's error.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
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
    feed::bounded("batch", &[rows, LONGEST_SCENARIO])?;
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
        Runner::new(original, original_interface).map_err(in_model("original", begin))?;
    let mut rewritten =
        Runner::new(rewritten, rewritten_interface).map_err(in_model("rewritten", begin))?;
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
                .map_err(in_model("original", &place))?;
            let q = rewritten
                .step(&step.tokens, step.length)
                .map_err(in_model("rewritten", &place))?;
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

/// Continues a prompt with the likeliest token, `count` times; returns the new tokens.
///
/// # Errors
/// [`ValidateError`] when the model fails.
pub fn greedy(
    session: &mut dyn Session,
    interface: &Interface,
    prompt: &[i64],
    count: usize,
) -> Result<Vec<i64>, ValidateError> {
    let cached = !interface.caches.is_empty();
    let mut runner = Runner::new(session, interface)?;
    let mut text = prompt.to_vec();
    runner.start(&[0])?;
    let mut unread = prompt.len();
    for _ in 0..count {
        // Without a cache the whole text is read again for every token.
        if !cached {
            runner.start(&[0])?;
            unread = text.len();
        }
        let tokens = text.get(text.len() - unread..).unwrap_or_default();
        let logits = runner.step(tokens, unread)?;
        let vocabulary = logits.shape.last().copied().unwrap_or(0).max(1);
        let scores = logits.to_f32();
        let last = scores.chunks(vocabulary).last().unwrap_or_default();
        text.push(i64::try_from(largest_index(last)).unwrap_or(0));
        unread = 1;
    }
    Ok(text.split_off(prompt.len()))
}

fn in_model<'a>(
    which: &'static str,
    step: &'a str,
) -> impl FnOnce(ValidateError) -> ValidateError + 'a {
    move |cause| ValidateError::Model {
        which,
        step: step.to_owned(),
        cause: Box::new(cause),
    }
}
