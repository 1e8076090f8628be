//! Parallel loops over the elements of fp32 tensors on the CPU.
//!
//! Elements or rows are independent, so results do not depend on the number of threads.

use candle_core::{Device, Error, Result, Storage, Tensor};
use rayon::prelude::*;

/// Number of elements per task; smaller tasks would not outweigh their overhead.
pub const SHARE: usize = 8192;

/// Calls `of` on the elements of `tensor`, row-major.
///
/// # Errors
/// If `tensor` is not fp32 or not on the CPU.
pub fn read<R>(tensor: &Tensor, of: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::Msg(
            "the tensor is not in the processor's memory".to_owned(),
        ));
    };
    let range = layout.contiguous_offsets().map(|(start, end)| {
        let all = storage.as_slice::<f32>();
        all.map(|all| all.get(start..end).unwrap_or_default())
    });
    match range {
        Some(elements) => Ok(of(elements?)),
        None => Err(Error::Msg("the tensor is not contiguous".to_owned())),
    }
}

/// exp(x) within two units in the last place, without a branch or call, so that loops over it are vectorized.
///
/// With k = round(x / ln 2) and r = x - k ln 2, exp(x) = 2^k exp(r), and exp(r) for |r| <= ln 2 / 2 is its Taylor
/// polynomial of degree 7, whose error is below half a unit in the last place. ln 2 is split in two, so that k times its
/// first part is exact. Results below 1.22e-38, about the smallest normal number, are 0, and those above 2^127.3 are infinite.
#[inline]
#[must_use]
pub fn exp(x: f32) -> f32 {
    /// Added to a number below 2^22, it rounds to an integer, which then is in the last bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    /// Within it, 2^k is a normal number.
    const RANGE: (f32, f32) = (-87.3, 88.3);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let k = rounded - ROUND;
    let r = x - k * LN_2.0 - k * LN_2.1;
    let tail = 1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r / 5040.0)));
    let power = 1.0 + (r + r * r * (0.5 + r * tail));
    // 2^k by its exponent bits, whose bias is 127.
    let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    let inside = power * scale;
    let above = if x > RANGE.1 { f32::INFINITY } else { inside };
    if x < RANGE.0 { 0.0 } else { above }
}

/// Maps `of` over the elements of `x`.
///
/// # Errors
/// As [`read`].
pub fn map(x: &Tensor, of: impl Fn(f32) -> f32 + Sync) -> Result<Tensor> {
    let values = read(x, |x| {
        let mut out = vec![0.0; x.len()];
        let shares = out.par_chunks_mut(SHARE).zip(x.par_chunks(SHARE));
        shares.for_each(|(out, x)| {
            for (out, x) in out.iter_mut().zip(x) {
                *out = of(*x);
            }
        });
        out
    })?;
    Tensor::from_vec(values, x.dims(), &Device::Cpu)
}

/// Maps `of` over the pairs of elements of `x` and `y`, which have the same shape.
///
/// # Errors
/// As [`read`], and if the shapes differ.
pub fn zip(x: &Tensor, y: &Tensor, of: impl Fn(f32, f32) -> f32 + Sync) -> Result<Tensor> {
    let values = read(x, |x| {
        read(y, |y| {
            let mut out = vec![0.0; x.len().min(y.len())];
            let inputs = x.par_chunks(SHARE).zip(y.par_chunks(SHARE));
            let shares = out.par_chunks_mut(SHARE).zip(inputs);
            shares.for_each(|(out, (x, y))| {
                for (out, (x, y)) in out.iter_mut().zip(x.iter().zip(y)) {
                    *out = of(*x, *y);
                }
            });
            out
        })
    })??;
    Tensor::from_vec(values, x.dims(), &Device::Cpu)
}

/// Calls `of` with each row of `x` and the row of the result, which has the same length. Rows are along the last axis.
///
/// # Errors
/// As [`read`].
pub fn rows(x: &Tensor, of: impl Fn(&[f32], &mut [f32]) + Sync) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    let values = read(x, |x| {
        let mut out = vec![0.0; x.len()];
        let rows = out.par_chunks_mut(width).zip(x.par_chunks(width));
        rows.for_each(|(out, x)| of(x, out));
        out
    })?;
    Tensor::from_vec(values, x.dims(), &Device::Cpu)
}

/// Calls `of` with each row of `x`, of `y` and of the result, which have the same shape.
///
/// # Errors
/// As [`read`].
pub fn row_pairs(
    x: &Tensor,
    y: &Tensor,
    of: impl Fn(&[f32], &[f32], &mut [f32]) + Sync,
) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    let values = read(x, |x| {
        read(y, |y| {
            let mut out = vec![0.0; x.len().min(y.len())];
            let inputs = x.par_chunks(width).zip(y.par_chunks(width));
            let rows = out.par_chunks_mut(width).zip(inputs);
            rows.for_each(|(out, (x, y))| of(x, y, out));
            out
        })
    })??;
    Tensor::from_vec(values, x.dims(), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exponentials_are_those_of_the_standard_library() {
        for at in -870_000..=883_000 {
            let x = at as f32 * 1e-4;
            let exact = f64::from(x).exp();
            // Two units in the last place.
            let error = (f64::from(exp(x)) / exact - 1.0).abs();
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}): {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(1e30), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
