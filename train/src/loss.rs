//! Losses and their gradients with respect to the logits.
//!
//! Logits are [rows, V] with a row for each position. Sums run in fp64.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::error::TrainError;
use crate::kernels::{exp, read};

/// A loss and its gradient.
#[derive(Debug)]
pub struct Loss {
    /// Its mean over the counted positions, in nats.
    pub mean: f64,
    /// d mean / d logits, in the shape of the logits.
    pub grad: Tensor,
}

/// The distillation loss: the mean over the counted positions of
///
///   KL(p || q) = sum_v p_v (log p_v - log q_v),   p = softmax(teacher), q = softmax(student).
///
/// Its gradient with respect to a student's logit is (q_v - p_v) / counted. `counted` marks the positions that count.
///
/// # Errors
/// [`TrainError::Loss`] if the shapes differ or no position counts.
pub fn distillation(
    teacher: &Tensor,
    student: &Tensor,
    counted: &[bool],
) -> Result<Loss, TrainError> {
    if teacher.dims() != student.dims() {
        return Err(TrainError::Loss(format!(
            "the teacher's logits have shape {:?}, the student's {:?}: the two models are not of one vocabulary",
            teacher.dims(),
            student.dims()
        )));
    }
    read(teacher, |teacher| {
        by_row(student, counted, &|at, row, grad, share| {
            let width = row.len();
            let target = teacher
                .get(at * width..(at + 1) * width)
                .unwrap_or_default();
            let mut p = vec![0.0; width];
            let (p_sum, q_sum) = (softmax(target, &mut p), softmax(row, grad));
            let logits = target.iter().zip(row);
            let terms = p.iter().zip(logits).map(|(&p, (&x, &y))| {
                let (log_p, log_q) = (x - p_sum as f32, y - q_sum as f32);
                p * (log_p - log_q)
            });
            let kl = terms.map(f64::from).sum();
            let pairs = grad.iter_mut().zip(&p);
            pairs.for_each(|(q, &p)| *q = (*q - p) * share);
            kl
        })
    })?
}

/// The next-token loss: the mean over the counted positions of -log q_t, with q = softmax(logits) and t the next token.
/// Its gradient with respect to a logit is (q_v - [v = t]) / counted.
///
/// # Errors
/// [`TrainError::Loss`] if no position counts.
pub fn next_token(logits: &Tensor, targets: &[i64], counted: &[bool]) -> Result<Loss, TrainError> {
    by_row(logits, counted, &|at, row, grad, share| {
        let sum = softmax(row, grad);
        grad.iter_mut().for_each(|q| *q *= share);
        let target = targets.get(at).and_then(|&t| usize::try_from(t).ok());
        if let Some(slot) = target.and_then(|t| grad.get_mut(t)) {
            *slot -= share;
        }
        let logit = target.and_then(|t| row.get(t)).copied().unwrap_or(f32::NAN);
        sum - f64::from(logit)
    })
}

/// Writes softmax(`row`) to `out`. Returns log sum exp of `row`.
fn softmax(row: &[f32], out: &mut [f32]) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (out, &x) in out.iter_mut().zip(row) {
        *out = exp(x - largest);
    }
    let sum: f64 = out.iter().map(|&e| f64::from(e)).sum();
    let share = (1.0 / sum) as f32;
    out.iter_mut().for_each(|e| *e *= share);
    f64::from(largest) + sum.ln()
}

/// Computes the loss of a position. Arguments: the position, its logits, the gradient to be written, and one over the
/// number of counted positions.
type Position<'a> = &'a (dyn Fn(usize, &[f32], &mut [f32], f32) -> f64 + Sync);

fn by_row(logits: &Tensor, counted: &[bool], of: Position) -> Result<Loss, TrainError> {
    let width = logits.dims().last().copied().unwrap_or(0).max(1);
    let count = counted.iter().filter(|&&c| c).count();
    if count == 0 || counted.len() * width != logits.elem_count() {
        return Err(TrainError::Loss(format!(
            "logits of shape {:?} for {} positions, of which {count} count",
            logits.dims(),
            counted.len()
        )));
    }
    let share = 1.0 / count as f32;
    let (losses, grad) = read(logits, |logits| {
        let mut grad = vec![0.0; logits.len()];
        let rows = grad.par_chunks_mut(width).zip(logits.par_chunks(width));
        let losses: Vec<f64> = rows
            .zip(counted.par_iter())
            .enumerate()
            .map(|(at, ((grad, row), &counts))| {
                if counts {
                    of(at, row, grad, share)
                } else {
                    0.0
                }
            })
            .collect();
        (losses, grad)
    })?;
    Ok(Loss {
        mean: losses.iter().sum::<f64>() / count as f64,
        grad: Tensor::from_vec(grad, logits.dims(), &Device::Cpu)?,
    })
}
