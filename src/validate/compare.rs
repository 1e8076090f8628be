//! Comparison of the logits of two models with a tolerance.

use gqa2mla_passes::numbers::counted;
use serde::Serialize;

use crate::runtime::tensor::{ElementType, Tensor};
use crate::validate::error::ValidateError;

/// The comparison of one run of both models over all positions that hold a token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepComparison {
    /// The scenario.
    pub scenario: String,
    /// The run within the scenario.
    pub step: String,
    /// Number of rows.
    pub batch: usize,
    /// Number of new tokens per row.
    pub tokens: usize,
    /// Number of past tokens.
    pub past: usize,
    /// Number of compared positions: without padding and without rows that are not finite in the original.
    pub positions: usize,
    /// Largest absolute difference of two logits.
    pub max_delta: f64,
    /// Largest absolute logit of the original.
    pub max_logit: f64,
    /// `max_delta / max_logit`.
    pub ratio: f64,
    /// Mean over positions of KL(original || rewritten) of the next-token distributions, in nats.
    pub mean_kl: f64,
    /// Share of positions at which both models have the same most likely token.
    pub top1_agreement: f64,
    /// Whether the rewritten model's logits are finite wherever the original's are.
    pub finite: bool,
}

/// The comparison of two models over all runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The runtime of the original.
    pub original_runtime: String,
    /// The runtime of the rewritten model.
    pub rewritten_runtime: String,
    /// The comparisons of all runs, in order.
    pub steps: Vec<StepComparison>,
    /// Bytes of the original's caches per token, measured from its outputs.
    pub original_cache_bytes: f64,
    /// Bytes of the rewritten model's caches per token, measured from its outputs.
    pub rewritten_cache_bytes: f64,
    /// The tolerance: the largest `ratio` that passes.
    pub tolerance: f64,
}

impl Comparison {
    /// Whether every run has compared positions, finite logits and a ratio within the tolerance.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.passed(self.tolerance))
    }

    /// The largest ratio of all runs.
    #[must_use]
    pub fn max_ratio(&self) -> f64 {
        self.steps.iter().map(|step| step.ratio).fold(0.0, f64::max)
    }

    /// Mean KL over all positions of all runs, in nats.
    #[must_use]
    pub fn mean_kl(&self) -> f64 {
        self.mean_over_positions(|step| step.mean_kl)
    }

    /// Share of all positions at which both models have the same most likely token.
    #[must_use]
    pub fn top1_agreement(&self) -> f64 {
        self.mean_over_positions(|step| step.top1_agreement)
    }

    #[allow(clippy::cast_precision_loss)]
    fn mean_over_positions(&self, of: impl Fn(&StepComparison) -> f64) -> f64 {
        let positions: usize = self.steps.iter().map(|step| step.positions).sum();
        let sum: f64 = self
            .steps
            .iter()
            .filter(|s| s.positions > 0)
            .map(|step| of(step) * step.positions as f64)
            .sum();
        sum / positions.max(1) as f64
    }
}

impl StepComparison {
    /// Whether this run is within `tolerance`.
    #[must_use]
    pub fn passed(&self, tolerance: f64) -> bool {
        self.positions > 0 && self.finite && self.ratio <= tolerance
    }
}

/// The default tolerance for logits of this type: 1e-3 for fp32, 2e-2 for fp16 and bf16.
#[must_use]
pub fn default_tolerance(element: ElementType) -> f64 {
    if element == ElementType::F32 {
        1e-3
    } else {
        2e-2
    }
}

/// The description of a run for [`compare_step`].
#[derive(Debug, Clone, Copy)]
pub struct StepLabel<'a> {
    /// The scenario.
    pub scenario: &'a str,
    /// The run within the scenario.
    pub step: &'a str,
    /// Number of new tokens per row.
    pub tokens: usize,
    /// Number of past tokens.
    pub past: usize,
    /// Number of left-padding positions of each row.
    pub pads: &'a [usize],
}

/// Compares the logits `[B, T, V]` of one run. Models may return logits only for the last tokens.
///
/// # Errors
/// [`ValidateError::Logits`] if the shapes differ, [`ValidateError::Interface`] if they are not `[B, T, V]`.
#[allow(clippy::cast_precision_loss)]
pub fn compare_step(
    label: &StepLabel<'_>,
    original: &Tensor,
    rewritten: &Tensor,
) -> Result<StepComparison, ValidateError> {
    let differ = || ValidateError::Logits {
        step: format!("{}, {}", label.scenario, label.step),
        original: original.shape.clone(),
        rewritten: rewritten.shape.clone(),
    };
    if original.shape != rewritten.shape {
        return Err(differ());
    }
    let (batches, tokens) = (label.pads.len(), label.tokens);
    let odd = || {
        let (step, shape) = (
            format!("{}, {}", label.scenario, label.step),
            &original.shape,
        );
        ValidateError::Interface(format!(
            "{step}: both models give logits of the shape {shape:?} for {} of {}, which is not [B, T, V]",
            counted(batches, "row"),
            counted(tokens, "token")
        ))
    };
    let [batch, rows, vocabulary] = *original.shape.as_slice() else {
        return Err(odd());
    };
    if batch != batches || rows > tokens || rows * vocabulary == 0 {
        return Err(odd());
    }
    let mut sums = Sums {
        finite: true,
        ..Sums::default()
    };
    let (original, rewritten) = (original.to_f32(), rewritten.to_f32());
    for (at, (p, q)) in original
        .chunks(vocabulary)
        .zip(rewritten.chunks(vocabulary))
        .enumerate()
    {
        let slot = label.past + label.tokens - rows + at % rows;
        if label.pads.get(at / rows).is_some_and(|pads| slot >= *pads) {
            sums.add(p, q);
        }
    }
    let mean = |sum: f64| {
        if sums.positions == 0 {
            0.0
        } else {
            sum / sums.positions as f64
        }
    };
    let ratio = if sums.max_delta == 0.0 {
        0.0
    } else {
        sums.max_delta / sums.max_logit
    };
    Ok(StepComparison {
        scenario: label.scenario.to_owned(),
        step: label.step.to_owned(),
        batch,
        tokens: label.tokens,
        past: label.past,
        positions: sums.positions,
        max_delta: sums.max_delta,
        max_logit: sums.max_logit,
        ratio,
        mean_kl: mean(sums.kl),
        top1_agreement: mean(sums.agreeing),
        finite: sums.finite,
    })
}

#[derive(Default)]
struct Sums {
    positions: usize,
    max_delta: f64,
    max_logit: f64,
    kl: f64,
    agreeing: f64,
    finite: bool,
}

impl Sums {
    /// Adds the logits of one position. Minus infinity marks an impossible token; if both models have it, they agree.
    fn add(&mut self, p: &[f32], q: &[f32]) {
        let meaningless = |x: &f32| x.is_nan() || *x == f32::INFINITY;
        if p.iter().any(meaningless) || p.iter().all(|x| !x.is_finite()) {
            return;
        }
        self.positions += 1;
        for (&p, &q) in p.iter().zip(q).filter(|(p, q)| p.to_bits() != q.to_bits()) {
            if q.is_nan() || (!q.is_finite() && p.is_finite()) {
                self.finite = false;
            } else {
                self.max_delta = self.max_delta.max((f64::from(p) - f64::from(q)).abs());
            }
        }
        let largest = p
            .iter()
            .filter(|x| x.is_finite())
            .fold(0.0_f32, |m, x| m.max(x.abs()));
        self.max_logit = self.max_logit.max(f64::from(largest));
        self.kl += divergence(p, q);
        self.agreeing += f64::from(u8::from(largest_index(p) == largest_index(q)));
    }
}

/// KL(p || q), in nats, of the distributions of two rows of logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (zp, zq) = (log_sum_exp(p), log_sum_exp(q));
    let pairs = p
        .iter()
        .zip(q)
        .map(|(&p, &q)| (f64::from(p) - zp, f64::from(q) - zq));
    let sum: f64 = pairs
        .filter(|(p, _)| p.is_finite())
        .map(|(p, q)| p.exp() * (p - q))
        .sum();
    // Rounding can make the KL of equal distributions slightly negative.
    if sum < 0.0 { 0.0 } else { sum }
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let largest = row
        .iter()
        .fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
    largest + sum.ln()
}

/// The index of the largest element, the first of equals; 0 for an empty row.
#[must_use]
pub fn largest_index(row: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (at, &x) in row.iter().enumerate() {
        if x > best.1 {
            best = (at, x);
        }
    }
    best.0
}
