//! Sums, means and maxima over axes.

use candle_core::DType;

use crate::error::OpError;
use crate::operators::{Call, Computed, TrainOperator, axis, extent, flows};

pub const OPERATORS: &[TrainOperator] = &[
    flows("ReduceMean", |c| reduced(c, true)),
    flows("ReduceSum", |c| reduced(c, false)),
    flows("ReduceMax", largest),
];

struct Axes {
    axes: Vec<usize>,
    /// The shape of the result with reduced axes of size 1.
    kept: Vec<usize>,
    /// The shape of the result.
    dims: Vec<usize>,
}

/// The axes in input 1, or in an attribute in older opsets. Without axes, all are reduced, or none with
/// `noop_with_empty_axes`.
fn axes(call: &Call) -> Result<Axes, OpError> {
    let before = call.input(0)?.dims();
    let named = call
        .integers(1)?
        .or_else(|| call.ints("axes"))
        .unwrap_or_default();
    let axes: Vec<usize> = match named.as_slice() {
        [] if call.int("noop_with_empty_axes", 0) != 0 => Vec::new(),
        [] => (0..before.len()).collect(),
        named => named
            .iter()
            .map(|&a| axis(a, before.len()))
            .collect::<Result<_, _>>()?,
    };
    let extents = || (0..before.len()).map(|at| (at, extent(before, at)));
    let kept = extents().map(|(at, dim)| if axes.contains(&at) { 1 } else { dim });
    let kept: Vec<usize> = kept.collect();
    let dims = match call.int("keepdims", 1) {
        0 => extents()
            .filter(|(at, _)| !axes.contains(at))
            .map(|(_, dim)| dim)
            .collect(),
        _ => kept.clone(),
    };
    Ok(Axes { axes, kept, dims })
}

/// y = sum x, or sum x / n; dx = dy, or dy / n, copied.
fn reduced(call: &Call, mean: bool) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let Axes { axes, kept, dims } = axes(call)?;
    let count: usize = axes.iter().map(|&at| extent(x.dims(), at)).product();
    let before = x.dims().to_vec();
    let mut output = x.contiguous()?.sum_keepdim(axes)?.reshape(dims)?;
    let share = if mean { 1.0 / count.max(1) as f64 } else { 1.0 };
    if mean && output.dtype() == DType::F32 {
        output = (output * share)?;
    }
    Ok(call.made_of_first(output, move |grad| {
        let grad = grad.reshape(kept)?;
        Ok((grad * share)?.broadcast_as(before)?)
    }))
}

/// y = the largest x; dx = dy where x is it, in equal shares.
fn largest(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?.contiguous()?;
    let Axes { axes, kept, dims } = axes(call)?;
    let mut most = x.clone();
    for &at in &axes {
        most = most.max_keepdim(at)?;
    }
    let output = most.reshape(dims)?;
    Ok(call.made_of_first(output, move |grad| {
        let chosen = x.broadcast_eq(&most)?.to_dtype(grad.dtype())?;
        let share = chosen.broadcast_div(&chosen.sum_keepdim(axes)?)?;
        Ok(share.broadcast_mul(&grad.reshape(kept)?)?)
    }))
}
