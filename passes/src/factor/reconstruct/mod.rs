//! Local reconstruction: from factors that are good on average to factors that are good for this attention.
//!
//! One attention at a time, w_dk, w_uk, w_dv, w_uv and a bias are changed by gradient descent until the attention's
//! output, as o_proj reads it, is as near as possible to the original's on the text's own queries, keys and values:
//!
//! ```text
//! minimise  | sum_h (out'_h - out_h) W_O,h |²      out'_h = softmax(mask(f(q_h w_uk[j] · c_k))) c_v w_uv[j] + b_h
//! ```
//!
//! In the expanded form the keys that latents are made of are those before rotation, and what is rebuilt is rotated:
//! the score is then `q_h · rotate(c_k w_uk[j])`.
//!
//! The text that was read met the first positions only, and what a latent loses of rotated keys depends on the position.
//! Each step therefore moves its sequence to another position of the contexts to be served: queries and keys are rotated
//! alike, so that the scores stay what they are in the original.
//!
//! Adam works in the coordinates in which the weighted principal components are orthonormal: A = M⁻¹ w_d, B = M w_u.
//! It needs no labels and no other layer, and the same inputs give the same factors.

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
use forward::Layer;
use pick::{offset, queries};
use weights::Weights;

/// How to descend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descent {
    /// Steps of Adam.
    pub steps: usize,
    /// Queries that one step looks at, of one sequence.
    pub queries: usize,
    /// Rate of the first step; it falls to zero along a cosine.
    pub rate: f64,
    /// Positions of the contexts to be served: sequences are moved to offsets among them, where the rotation is known.
    pub positions: usize,
}

/// How often a descent looks at the sequence that is kept aside.
const LOOKS: usize = 8;
/// Offsets at which it is looked at: the first, the last and one between them.
const OFFSETS: usize = 3;

/// Descends from `start`. The last example is kept aside: the result is the best on it of what the descent passes
/// through, and never worse than `start`.
/// `progress` is told after each step how many are done, and the relative squared error of that step.
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
    let layer = Layer::new(attention, start);
    let length = |example: &Example| example.sequence.length;
    let energy: f64 = used
        .iter()
        .map(|e| layer.energy(&e.target, length(e)))
        .sum();
    let tokens: usize = used.iter().map(length).sum();
    if energy <= 0.0 || !energy.is_finite() || tokens == 0 {
        return Ok((start.clone(), [before, before]));
    }
    // Mean energy of one query's target: losses become relative.
    let unit = energy / tokens as f64;
    let frame = Frame::new(moments, attention, unit)?;
    let mut point = frame.enter(start);
    let mut adam = Adam::new(point.len());
    let mut weights = Weights::of(start, attention);
    // A short text is soon learnt by heart: what is best on the sequence kept aside is what counts.
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
        weights = Weights::of(&factors, attention);
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
