//! Validation of a rewrite with the runtime's graph optimizations off, then on.

use gqa2mla_passes::graph::int_attribute;
use gqa2mla_passes::onnx::GraphProto;

use crate::files::load::LoadedModel;
use crate::runtime::tensor::ElementType;
use crate::runtime::{RuntimeOptions, open};
use crate::validate::compare::Comparison;
use crate::validate::error::{ValidateError, Which};
use crate::validate::lockstep::{ValidateOptions, validate};
use crate::validate::ports::LanguageModel;

/// Tolerance for models with 8-bit activations: a quantization step is 1/127 of the largest value of a block.
const ROUNDED_ACTIVATIONS: f64 = 2e-2;

/// Tolerance for caches of 8-bit integers: the keys and the values of every layer have an error of up to half of 1/127
/// of the range that a text showed, and random tokens beyond that range are clamped.
const ROUNDED_CACHE: f64 = 1e-1;

/// Tolerance for caches of 4-bit integers, whose quantization steps are 17 times as large. The noise of many channels
/// partly cancels, so that the tolerance is less than 17 times as large.
const ROUNDED_TO_FOUR_BITS: f64 = 1.0;

/// How much further, in nats, the runtime's optimizations may take a model that differs from the original. Random token ids, whose
/// rounding is the worst, change by less than a tenth of this.
const CHANGED_BY_ROUNDING: f64 = 0.05;

/// The options of a validation.
#[derive(Debug, Clone, Default)]
pub struct ProofOptions {
    /// Token ids to use instead of random ones.
    pub tokens: Option<Vec<i64>>,
    /// Seed of the random token ids.
    pub seed: u64,
    /// The largest accepted logit difference, relative to the largest logit. `None`: 1e-3 in single precision, 2e-2 in
    /// half precision and for quantized activations, 1e-1 if only the rewritten model has a cache of 8-bit integers,
    /// and 1 if only it has one of 4-bit integers.
    pub tolerance: Option<f64>,
}

impl ProofOptions {
    /// Checks that the token ids are in the vocabulary of `model`, because a runtime may read outside its embedding.
    ///
    /// # Errors
    /// [`ValidateError::Token`].
    pub fn check_tokens(&self, model: &LanguageModel) -> Result<(), ValidateError> {
        let largest = model.vocabulary.saturating_sub(1);
        let fits = |id: &i64| {
            let known = usize::try_from(*id).ok();
            known.is_some_and(|id| id <= largest || !model.vocabulary_is_known)
        };
        let mut given = self.tokens.iter().flatten();
        match given.find(|id| !fits(id)) {
            Some(&id) => Err(ValidateError::Token { id, largest }),
            None => Ok(()),
        }
    }
}

/// The comparisons of two models without and with graph optimizations.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    /// With graph optimizations off, because an optimizer could hide an error of the graph.
    pub unoptimized: Comparison,
    /// With graph optimizations on; `None` for runtimes other than ONNX Runtime.
    pub optimized: Option<Comparison>,
}

impl Proof {
    /// Whether both comparisons are within the tolerance.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.comparisons().all(Comparison::passed)
    }

    /// Whether the runtime's optimizations leave what the rewritten model computes in each run as it is: they reorder sums, so that
    /// some integers of a cache are rounded to the other side.
    #[must_use]
    pub fn is_stable(&self) -> bool {
        let Some(optimized) = &self.optimized else {
            return true;
        };
        let mut runs = self.unoptimized.steps.iter().zip(&optimized.steps);
        runs.all(|(before, after)| after.mean_kl <= 2.0 * before.mean_kl + CHANGED_BY_ROUNDING)
    }

    /// Whether all logits of all runs are finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let mut steps = self.comparisons().flat_map(|c| &c.steps);
        steps.all(|s| s.finite && s.positions > 0)
    }

    /// The comparisons, the unoptimized one first.
    pub fn comparisons(&self) -> impl Iterator<Item = &Comparison> {
        [Some(&self.unoptimized), self.optimized.as_ref()]
            .into_iter()
            .flatten()
    }
}

/// Runs both models through the same scenarios and compares their logits. `optimize` of `runtime` is ignored.
/// `progress` is called with (whether optimizations are on, done, total).
///
/// # Errors
/// [`ValidateError`]; see [`ValidateError::is_about_the_rewritten`] for its cause.
pub fn prove(
    original: &LoadedModel,
    rewritten: &LoadedModel,
    runtime: &RuntimeOptions,
    options: &ProofOptions,
    progress: &mut dyn FnMut(bool, usize, usize),
) -> Result<Proof, ValidateError> {
    let describe = |which, model: &LoadedModel| {
        let known = LanguageModel::of(&model.model.proto);
        let known = known.and_then(|known| known.fed(&runtime.given));
        known.map_err(opening(which, model))
    };
    let before = describe(Which::Original, original)?;
    let after = describe(Which::Rewritten, rewritten)?;
    options.check_tokens(&before)?;
    let asked = ValidateOptions {
        vocabulary: before.vocabulary,
        tokens: options.tokens.clone(),
        seed: options.seed,
        right_padded_only: before.right_padded_only,
        tolerance: options.tolerance.or_else(|| {
            let four_bits = rewritten
                .model
                .proto
                .graph
                .as_ref()
                .is_some_and(packs_four_bits);
            usual_tolerance(&before, &after, four_bits)
        }),
    };
    let mut run = |optimize: bool| {
        let runtime = RuntimeOptions {
            optimize,
            ..runtime.clone()
        };
        let session = |which, model: &LoadedModel| {
            let opened = open(&model.path, &runtime).map_err(ValidateError::from);
            opened.map_err(opening(which, model))
        };
        let mut sessions = (
            session(Which::Original, original)?,
            session(Which::Rewritten, rewritten)?,
        );
        validate(
            sessions.0.as_mut(),
            sessions.1.as_mut(),
            &before.interface,
            &after.interface,
            &asked,
            &mut |done, total| progress(optimize, done, total),
        )
    };
    let unoptimized = run(false)?;
    let optimized = match unoptimized.original_runtime.starts_with("ONNX Runtime") {
        true => Some(run(true)?),
        false => None,
    };
    Ok(Proof {
        unoptimized,
        optimized,
    })
}

/// The default tolerance for quantized activations and caches; `None` for others.
fn usual_tolerance(before: &LanguageModel, after: &LanguageModel, four_bits: bool) -> Option<f64> {
    let holds_integers = |model: &LanguageModel| {
        let mut caches = model.interface.caches.iter();
        caches.any(|cache| matches!(cache.element, ElementType::U8 | ElementType::I8))
    };
    match holds_integers(after) && !holds_integers(before) {
        true if four_bits => Some(ROUNDED_TO_FOUR_BITS),
        true => Some(ROUNDED_CACHE),
        false => before.rounds_activations.then_some(ROUNDED_ACTIVATIONS),
    }
}

/// Whether an operator of `graph` or of its branches reads caches whose bytes hold two integers of 4 bits.
fn packs_four_bits(graph: &GraphProto) -> bool {
    graph.node.iter().any(|node| {
        let mut branches = node.attribute.iter().filter_map(|a| a.g.as_ref());
        int_attribute(node, "kv_cache_bit_width", 0) == 4 || branches.any(packs_four_bits)
    })
}

fn opening(which: Which, model: &LoadedModel) -> impl Fn(ValidateError) -> ValidateError + use<> {
    let path = model.path.display().to_string();
    move |cause| ValidateError::Open {
        which,
        path: path.clone(),
        cause: Box::new(cause),
    }
}
