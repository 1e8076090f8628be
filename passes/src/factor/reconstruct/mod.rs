//! Local reconstruction: fits the factors of one attention to its own outputs by gradient descent.
//!
//! For each attention separately, w_dk, w_uk, w_dv, w_uv and a bias are optimized so that the output after o_proj is as
//! close as possible to the original's, on recorded queries, keys and values of a text:
//!
//! ```text
//! minimise  | sum_h (out'_h - out_h) W_O,h |²      out'_h = softmax(mask(f(q_h w_uk[j] · c_k))) c_v w_uv[j] + b_h
//! ```
//!
//! In the expanded form latents are computed from unrotated keys, and rebuilt keys are rotated: the score is then `q_h
//! · rotate(c_k w_uk[j])`.
//!
//! The text covers only the first positions, and the loss of a latent of rotated keys depends on the position. Each
//! step therefore moves its sequence to another position of the target context: queries and keys are rotated by the
//! same angle, so that the original's scores do not change.
//!
//! Adam works in the coordinates in which the weighted principal components are orthonormal, A = M⁻¹ w_d and B = M w_u,
//! with each column scaled to its initial length. The result is deterministic.

mod attention;
mod backward;
mod descent;
mod forward;
mod objective;
mod pick;
mod rotary;
mod scored;
mod step;
mod weights;

pub use attention::{Attention, Sequence};
pub use objective::{Example, error, gradient, outputs};
pub use rotary::Rotary;

use crate::factor::Factors;
use crate::factor::moments::Moments;
use crate::factor::spectral::SpectralError;
use descent::{Adam, Frame};
use forward::RankedAttention;
use pick::{offset, queries};
use weights::SingleFactors;

/// Options of the gradient descent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descent {
    /// Number of Adam steps.
    pub steps: usize,
    /// Number of queries of one sequence per step.
    pub queries: usize,
    /// Initial learning rate; it decays to zero along a cosine.
    pub rate: f64,
    /// Number of positions of the target context: sequences are moved to offsets within it, if the RoPE is known.
    pub positions: usize,
}

/// Number of evaluations on the held-out sequence during a descent.
const LOOKS: usize = 8;
/// Number of offsets of each evaluation: the first, the last and one between them.
const OFFSETS: usize = 3;

/// Optimizes factors from `start` on. The last example is held out: the result is the evaluated factors with the least
/// error on it, and never worse than `start`. `progress` is called after each step with the number of steps done and
/// the relative squared error of that step. Returns the factors, and the held-out relative squared error before and
/// after.
///
/// # Errors
/// [`SpectralError`] if the weights of the moments have no square root.
pub fn reconstruct(
    attention: &Attention,
    moments: &Moments,
    start: &Factors,
    examples: &[Example],
    descent: Descent,
    progress: &mut dyn FnMut(usize, f64),
) -> Result<(Factors, [f64; 2]), SpectralError> {
    let (aside, used) = match examples.split_last() {
        Some((aside, used)) if !used.is_empty() => (std::slice::from_ref(aside), used),
        _ => (examples, examples),
    };
    let room = |e: &Example| attention.room(e.sequence.length, descent.positions);
    let looked_at = |example: &Example| -> Vec<Example> {
        let last = OFFSETS - 1;
        let mut offsets: Vec<usize> = (0..OFFSETS).map(|n| n * room(example) / last).collect();
        offsets.dedup();
        let moved = offsets.into_iter().map(|n| example.moved(attention, n));
        moved.collect()
    };
    let aside: Vec<Example> = aside.iter().flat_map(looked_at).collect();
    let before = error(attention, start, &aside);
    let layer = RankedAttention::new(attention, start);
    let length = |example: &Example| example.sequence.length;
    let energy: f64 = used
        .iter()
        .map(|e| layer.energy(&e.target, length(e)))
        .sum();
    let tokens: usize = used.iter().map(length).sum();
    if energy <= 0.0 || !energy.is_finite() || tokens == 0 {
        return Ok((start.clone(), [before, before]));
    }
    // Mean squared norm of the target of one query; losses are divided by it.
    let unit = energy / tokens as f64;
    let frame = Frame::new(moments, attention, start, unit)?;
    let mut point = frame.enter(start);
    let mut adam = Adam::new(point.len());
    let mut weights = SingleFactors::of(start, attention);
    // A short text is overfitted soon, so the result is chosen on the held-out sequence.
    let (mut best, mut least) = (start.clone(), before);
    for step in 0..descent.steps {
        let which = step % used.len();
        let Some(example) = used.get(which) else {
            break;
        };
        let sequence = attention.moved(&example.sequence, offset(room(example), step));
        let queries = queries(sequence.length, descent.queries, step / used.len());
        let mut slope = weights.zeros();
        let loss = layer.step(
            &sequence,
            &example.target,
            &queries,
            &weights,
            Some(&mut slope),
        );
        let relative = loss / (unit * queries.len().max(1) as f64);
        let slope = slope.factors(attention, start);
        let slope = frame.pull(&slope, unit * queries.len().max(1) as f64);
        let rate = descent.rate
            * 0.5
            * (1.0 + (std::f64::consts::PI * step as f64 / descent.steps as f64).cos());
        adam.step(&mut point, &slope, rate);
        let factors = frame.leave(&point, start);
        weights = SingleFactors::of(&factors, attention);
        let last = step + 1 == descent.steps;
        if last || (step + 1) % descent.steps.div_ceil(LOOKS) == 0 {
            let now = error(attention, &factors, &aside);
            if now < least {
                (best, least) = (factors, now);
            }
        }
        progress(step + 1, relative);
    }
    Ok((best, [before, least]))
}
