//! AdamW with a learning rate relative to the scale of each tensor (Loshchilov and Hutter, arXiv 1711.05101).

use std::f64::consts::PI;

use candle_core::{Device, Error, Result, Tensor};
use rayon::prelude::*;

use crate::kernels::{SHARE, read};

/// The hyperparameters of the optimizer.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamOptions {
    /// Peak learning rate, relative to each tensor's initial root mean square, so that it is independent of their
    /// scales.
    pub rate: f64,
    /// Number of steps of the run.
    pub steps: usize,
    /// Number of steps of linear warm-up.
    pub warm_up: usize,
    /// Weight decay: in each step, a tensor shrinks by this share times the rate.
    pub decay: f64,
    /// Decay rates of the means of gradients and of their squares.
    pub betas: (f64, f64),
    /// Gradient clipping: largest norm of the gradient of all tensors, each in units of its root mean square.
    pub largest_gradient: f64,
}

impl AdamOptions {
    /// The default hyperparameters for `steps` steps with the peak rate `rate`.
    #[must_use]
    pub fn new(steps: usize, rate: f64) -> Self {
        Self {
            rate,
            steps,
            warm_up: 10.min(steps / 4),
            decay: 0.0,
            betas: (0.9, 0.98),
            largest_gradient: 1.0,
        }
    }

    /// The rate of step `step`, from 0: linear warm-up, then cosine decay to a tenth.
    #[must_use]
    pub fn rate_at(&self, step: usize) -> f64 {
        if step < self.warm_up {
            return self.rate * (step + 1) as f64 / self.warm_up as f64;
        }
        let left = self.steps.saturating_sub(self.warm_up).max(1);
        let share = (step - self.warm_up) as f64 / left as f64;
        self.rate * (0.55 + 0.45 * (PI * share.min(1.0)).cos())
    }
}

/// A trained tensor with its optimizer state.
#[derive(Debug, Clone)]
pub struct Trained {
    /// Its value, in fp32.
    pub values: Tensor,
    /// Running mean of its gradients, row-major.
    pub mean: Vec<f32>,
    /// Running mean of their squares, row-major.
    pub square: Vec<f32>,
    /// The unit of a step: its initial root mean square, times the share that it was made with.
    pub scale: f64,
}

/// Scale of a tensor that starts at zero, such as a bias.
const SMALLEST_SCALE: f64 = 1e-3;

impl Trained {
    /// A tensor that starts at `values`, and whose steps are `share` times as large as those of other tensors.
    ///
    /// # Errors
    /// If `values` is not fp32 or not on the CPU.
    pub fn new(values: Tensor, share: f64) -> Result<Self> {
        let squares = read(&values, sum_of_squares)?;
        let count = values.elem_count();
        Ok(Self {
            scale: (squares / count.max(1) as f64).sqrt().max(SMALLEST_SCALE) * share,
            mean: vec![0.0; count],
            square: vec![0.0; count],
            values,
        })
    }

    /// Takes the step of one tensor with its gradient `grad`.
    fn step(&mut self, grad: &[f32], rule: &Rule) -> Result<()> {
        let scale = self.scale;
        let moments = self
            .mean
            .par_chunks_mut(SHARE)
            .zip(self.square.par_chunks_mut(SHARE));
        let values = read(&self.values, |old| {
            let mut values = vec![0.0; old.len()];
            let pairs = values.par_chunks_mut(SHARE).zip(old.par_chunks(SHARE));
            let shares = pairs.zip(grad.par_chunks(SHARE)).zip(moments);
            shares.for_each(|(((values, old), grads), (means, squares))| {
                let moments = means.iter_mut().zip(squares);
                let pairs = values.iter_mut().zip(old);
                for (((value, &old), &grad), (mean, square)) in pairs.zip(grads).zip(moments) {
                    let grad = f64::from(grad) * scale * rule.clip;
                    let (b1, b2) = rule.betas;
                    let m = b1 * f64::from(*mean) + (1.0 - b1) * grad;
                    let s = b2 * f64::from(*square) + (1.0 - b2) * grad * grad;
                    (*mean, *square) = (m as f32, s as f32);
                    let direction = m / rule.fix_mean / ((s / rule.fix_square).sqrt() + 1e-8);
                    let old = f64::from(old);
                    *value = (old - rule.rate * (direction * scale + rule.decay * old)) as f32;
                }
            });
            values
        })?;
        self.values = Tensor::from_vec(values, self.values.dims(), &Device::Cpu)?;
        Ok(())
    }
}

/// The numbers of one step that are the same for all elements.
struct Rule {
    rate: f64,
    decay: f64,
    clip: f64,
    betas: (f64, f64),
    /// Bias corrections of the moments: 1 - b1^t and 1 - b2^t.
    fix_mean: f64,
    fix_square: f64,
}

/// Takes one step. With x = scale u, it is AdamW on u:
///
///   m = b1 m + (1 - b1) g,  s = b2 s + (1 - b2) g^2,  u -= rate (m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + 1e-8) + decay u).
///
/// A gradient is dropped as soon as its tensor is updated. Returns the norm of the gradient with respect to u before
/// clipping. If it is not finite, nothing is changed.
///
/// # Errors
/// If a gradient is not fp32, not on the CPU, or of another size than its tensor.
pub fn step(
    tensors: &mut [Trained],
    grads: Vec<Tensor>,
    descent: &AdamOptions,
    number: usize,
) -> Result<f64> {
    // Each tensor is summed in order, and so are the sums, so that the norm does not depend on the number of threads.
    let squares = tensors.par_iter().zip(&grads).map(|(tensor, grad)| {
        let square = read(grad, sum_of_squares)?;
        Ok(square * tensor.scale.powi(2))
    });
    let squares: Vec<f64> = squares.collect::<Result<_>>()?;
    let norm = squares.iter().sum::<f64>().sqrt();
    if !norm.is_finite() {
        return Ok(norm);
    }
    let (b1, b2) = descent.betas;
    let power = i32::try_from(number + 1).unwrap_or(i32::MAX);
    let rule = Rule {
        rate: descent.rate_at(number),
        decay: descent.decay,
        clip: (descent.largest_gradient / norm.max(1e-30)).min(1.0),
        betas: descent.betas,
        fix_mean: 1.0 - b1.powi(power),
        fix_square: 1.0 - b2.powi(power),
    };
    for (tensor, grad) in tensors.iter_mut().zip(grads) {
        if grad.elem_count() != tensor.mean.len() {
            return Err(Error::Msg(format!(
                "a gradient has {} elements, its tensor {}",
                grad.elem_count(),
                tensor.mean.len()
            )));
        }
        read(&grad, |grad| tensor.step(grad, &rule))??;
    }
    Ok(norm)
}

fn sum_of_squares(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum()
}
