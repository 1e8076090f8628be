//! Softmax.

use candle_core::Tensor;

use crate::error::OpError;
use crate::kernels::{exp, row_pairs, rows};
use crate::operators::{Call, Computed, TrainOperator, axis, flows};

pub const OPERATORS: &[TrainOperator] = &[flows("Softmax", softmax)];

/// p = exp(x) / sum exp(x); dx = p (dp - sum p dp).
fn softmax(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let (at, last) = (
        axis(call.int("axis", -1), x.rank())?,
        x.rank().saturating_sub(1),
    );
    let aligned = move |t: &Tensor| t.transpose(at, last);
    let p = rows(&aligned(x)?, exponentials)?;
    Ok(call.made_of_first(aligned(&p)?, move |grad| {
        let grad = row_pairs(&p, &aligned(grad)?, slope)?;
        Ok(aligned(&grad)?)
    }))
}

/// exp(x) / sum exp(x) of a row. A row without a visible position yields NaN, as the definition does; exporters add a
/// guard for it.
fn exponentials(x: &[f32], p: &mut [f32]) {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (p, &x) in p.iter_mut().zip(x) {
        *p = exp(x - largest);
    }
    let share = 1.0 / p.iter().sum::<f32>();
    p.iter_mut().for_each(|p| *p *= share);
}

fn slope(p: &[f32], grad: &[f32], out: &mut [f32]) {
    let mean: f32 = p.iter().zip(grad).map(|(p, g)| p * g).sum();
    if !p.iter().all(|p| p.is_finite()) {
        // A guard replaces such a row, so its gradient is zero.
        return;
    }
    for (out, (p, g)) in out.iter_mut().zip(p.iter().zip(grad)) {
        *out = p * (g - mean);
    }
}
