//! Shape arithmetic of broadcasting, `Reshape`, `Transpose`, `Squeeze`, `Unsqueeze` and `Slice` (ONNX operator
//! specification).

use tract_data::prelude::TDim;

use crate::facts::Shape;
use crate::facts::dim::{self, SizeFactors};

/// The position of `axis`, which may be negative, in a tensor of rank `rank`; `None` if it is out of range.
pub fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let positive = if axis < 0 { axis + rank } else { axis };
    (0..rank).contains(&positive).then_some(positive as usize)
}

/// The broadcast shape of `shapes`; a size that cannot be determined is `None`.
pub fn broadcast(shapes: &[&[TDim]]) -> Vec<Option<TDim>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    (0..rank)
        .map(|position| {
            let mut result = Some(TDim::Val(1));
            for shape in shapes {
                let offset = rank - shape.len();
                let Some(size) = position.checked_sub(offset).and_then(|i| shape.get(i)) else {
                    continue;
                };
                result = result.and_then(|so_far| broadcast_size(&so_far, size));
            }
            result
        })
        .collect()
}

fn broadcast_size(a: &TDim, b: &TDim) -> Option<TDim> {
    let above_one = |d: &TDim| d.as_i64().is_some_and(|n| n > 1);
    if a == b || *b == TDim::Val(1) || above_one(a) {
        Some(a.clone())
    } else if *a == TDim::Val(1) || above_one(b) {
        Some(b.clone())
    } else {
        None
    }
}

/// The output shape of `Reshape` of `input` to `target`; a size is `None` if it cannot be determined.
pub fn reshape(
    input: Option<&[TDim]>,
    target: &[TDim],
    allow_zero: bool,
) -> Option<Vec<Option<TDim>>> {
    let mut sizes = Vec::with_capacity(target.len());
    let mut open = None;
    for (position, size) in target.iter().enumerate() {
        match size.as_i64() {
            Some(-1) if open.is_none() => {
                open = Some(position);
                sizes.push(None);
            }
            Some(0) if !allow_zero => sizes.push(input.and_then(|s| s.get(position)).cloned()),
            Some(n) if n < 0 => return None,
            _ => sizes.push(Some(size.clone())),
        }
    }
    if let (Some(open), Some(input)) = (open, input)
        && let Some(slot) = sizes.get(open)
        && slot.is_none()
    {
        let zero = |size: &TDim| size.as_i64() == Some(0);
        if input.iter().any(zero) && !sizes.iter().flatten().any(zero) {
            if let Some(slot) = sizes.get_mut(open) {
                *slot = Some(TDim::Val(0));
            }
            return Some(sizes);
        }
        let mut rest = SizeFactors::of_product(input);
        let known = sizes
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != open)
            .all(|(_, size)| {
                size.as_ref()
                    .is_some_and(|size| rest.remove(&SizeFactors::of(size)))
            });
        if known && let Some(slot) = sizes.get_mut(open) {
            *slot = rest.product();
        }
    }
    Some(sizes)
}

/// `Transpose`; an empty `perm` reverses the axes. `None` if `perm` is not a permutation.
pub fn transpose<T: Clone>(input: &[T], perm: &[i64]) -> Option<Vec<T>> {
    if perm.is_empty() {
        return Some(input.iter().rev().cloned().collect());
    }
    if perm.len() != input.len() {
        return None;
    }
    let mut seen = vec![false; input.len()];
    perm.iter()
        .map(|&p| {
            let p = usize::try_from(p).ok()?;
            let first = seen.get_mut(p)?;
            (!std::mem::replace(first, true)).then(|| input.get(p).cloned())?
        })
        .collect()
}

/// For each axis of the output of `Unsqueeze`, whether it is new.
pub fn unsqueezed(axes: &[i64], input_rank: usize) -> Option<Vec<bool>> {
    let rank = input_rank + axes.len();
    let mut new = vec![false; rank];
    for &a in axes {
        let slot = new.get_mut(axis(a, rank)?)?;
        if std::mem::replace(slot, true) {
            return None;
        }
    }
    Some(new)
}

/// For each axis of the input of `Squeeze`, whether it is removed. Without `axes` the axes of size one are, and all
/// sizes must be constants.
pub fn squeezed(axes: Option<&[i64]>, input: &[TDim]) -> Option<Vec<bool>> {
    match axes {
        Some(axes) => {
            let mut gone = vec![false; input.len()];
            for &a in axes {
                *gone.get_mut(axis(a, input.len())?)? = true;
            }
            Some(gone)
        }
        None => input.iter().map(|d| d.as_i64().map(|n| n == 1)).collect(),
    }
}

/// `values` as a shape; `None` if one of them is negative.
pub fn sizes(values: &[TDim]) -> Option<Shape> {
    let negative = |size: &TDim| size.as_i64().is_some_and(|n| n < 0);
    (!values.iter().any(negative)).then(|| values.to_vec())
}

/// Number of elements that `Slice` with step 1 takes from an axis of `size` elements; `None` if the symbols do not
/// determine it.
pub fn slice_length(size: &TDim, start: &TDim, end: &TDim) -> Option<TDim> {
    let from = bound(size, start)?;
    let to = bound(size, end)?;
    let length = dim::sub(&to, &from)?;
    match length.as_i64() {
        Some(n) => Some(TDim::Val(n.max(0))),
        None => dim::never_negative(&length).then_some(length),
    }
}

/// Number of elements that `Slice` takes in steps of `step`, which may be negative; `None` if one operand is no number.
pub fn strided_length(size: &TDim, start: &TDim, end: &TDim, step: &TDim) -> Option<TDim> {
    let (size, step) = (size.as_i64()?, step.as_i64().filter(|&step| step != 0)?);
    // The index before the first element of an axis is -1 after clamping, and the end of a backward slice.
    let (low, high) = match step > 0 {
        true => (0, size),
        false => (-1, size - 1),
    };
    let at = |at: i64| match at < 0 {
        true => at.saturating_add(size).clamp(low, high.max(low)),
        false => at.clamp(low, high.max(low)),
    };
    let (from, to) = (at(start.as_i64()?), at(end.as_i64()?));
    let (distance, step) = match step > 0 {
        true => (to - from, step),
        false => (from - to, step.checked_neg()?),
    };
    Some(TDim::Val(match distance > 0 {
        true => (distance - 1) / step + 1,
        false => 0,
    }))
}

/// A start or end of `Slice` as an index from the front, clamped to an axis of `size` elements; `None` if the symbols
/// do not determine it.
pub fn bound(size: &TDim, at: &TDim) -> Option<TDim> {
    let size = match size.as_i64() {
        Some(n) if n < 0 => return None,
        _ => size,
    };
    if at == size {
        return Some(size.clone());
    }
    match (size.as_i64(), at.as_i64()) {
        (Some(size), Some(at)) => {
            let at = if at < 0 { at.saturating_add(size) } else { at };
            Some(TDim::Val(at.clamp(0, size)))
        }
        (None, Some(0)) => Some(TDim::Val(0)),
        // For an open end, exporters write the largest integer of the type.
        (None, Some(at)) if at >= i64::from(i32::MAX) => Some(size.clone()),
        (None, Some(at)) if at <= -i64::from(i32::MAX) => Some(TDim::Val(0)),
        // A symbolic size is known to be at least `at` only if their difference is never negative.
        _ => {
            let rest = dim::sub(size, at)?;
            (dim::never_negative(at) && dim::never_negative(&rest)).then(|| at.clone())
        }
    }
}

/// `sizes` with each unknown one replaced by a fresh symbol.
pub fn filled(sizes: Vec<Option<TDim>>, mut fresh: impl FnMut() -> TDim) -> Shape {
    sizes
        .into_iter()
        .map(|size| size.unwrap_or_else(&mut fresh))
        .collect()
}
