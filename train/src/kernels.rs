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
