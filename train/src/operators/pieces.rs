//! Operators that concatenate, split, slice and index tensors.

use candle_core::Tensor;

use crate::error::{OpError, invalid};
use crate::operators::indexed::{indices as at_indices, scattered};
use crate::operators::{Call, Computed, Pull, TrainOperator, axis, extent, flows, integers};

pub const OPERATORS: &[TrainOperator] = &[
    flows("Concat", concat),
    flows("Split", split),
    flows("Slice", slice),
    flows("Gather", gather),
];

/// y = the concatenation of the inputs; each gets its part of dy. An empty past contributes nothing.
fn concat(call: &Call) -> Result<Computed, OpError> {
    let at = axis(call.int("axis", 0), call.input(0)?.rank())?;
    let parts: Vec<&Tensor> = call.inputs.iter().flatten().collect();
    let filled: Vec<&Tensor> = parts
        .iter()
        .copied()
        .filter(|t| t.elem_count() > 0)
        .collect();
    let output = match filled.as_slice() {
        [] => call.input(0)?.clone(),
        [only] => (*only).clone(),
        many => Tensor::cat(many, at)?,
    };
    let widths: Vec<usize> = parts.iter().map(|t| extent(t.dims(), at)).collect();
    let tracked = call.tracked.to_vec();
    Ok(call.made(output, move |grad| {
        let mut start = 0;
        let mut grads = Vec::with_capacity(widths.len());
        for (width, tracked) in widths.into_iter().zip(tracked) {
            let part = (tracked && width > 0).then(|| grad.narrow(at, start, width));
            grads.push(part.transpose()?);
            start += width;
        }
        Ok(grads)
    }))
}

/// The gradient of a tensor with size `whole` along axis `at`, from the gradient `grad` of its part from `start` on.
fn padded(grad: &Tensor, at: usize, start: usize, whole: usize) -> Result<Tensor, OpError> {
    let after = whole.saturating_sub(start + extent(grad.dims(), at));
    Ok(grad.pad_with_zeros(at, start, after)?)
}

/// Consecutive parts of x; dx = the concatenation of their gradients.
fn split(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let at = axis(call.int("axis", 0), x.rank())?;
    let whole = extent(x.dims(), at);
    let count = call.node.output.len().max(1);
    let sizes: Vec<usize> = match call.integers(1)?.or_else(|| call.ints("split")) {
        Some(sizes) => sizes.iter().map(|&s| s.max(0) as usize).collect(),
        None => {
            let share = whole.div_ceil(count);
            (0..count)
                .map(|i| share.min(whole.saturating_sub(i * share)))
                .collect()
        }
    };
    let mut outputs = Vec::with_capacity(sizes.len());
    let mut start = 0;
    for &size in &sizes {
        outputs.push(x.narrow(at, start, size)?);
        start += size;
    }
    let pull: Option<Pull> = call.tracks(0).then(|| -> Pull {
        Box::new(move |grads| {
            let mut sum: Option<Tensor> = None;
            let mut start = 0;
            for (grad, size) in grads.iter().zip(sizes) {
                if let Some(grad) = grad {
                    let grad = padded(grad, at, start, whole)?;
                    sum = Some(match sum {
                        Some(sum) => (sum + grad)?,
                        None => grad,
                    });
                }
                start += size;
            }
            Ok(vec![sum])
        })
    });
    Ok(Computed { outputs, pull })
}

/// y = x from start to end with a step per axis; dx = dy, padded with zeros.
fn slice(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let (Some(starts), Some(ends)) = (call.integers(1)?, call.integers(2)?) else {
        return invalid("starts or ends are missing");
    };
    let axes = call
        .integers(3)?
        .unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = call.integers(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    let mut output = x.clone();
    let mut back: Vec<(usize, Cut, usize)> = Vec::new();
    for ((start, end), (at, step)) in starts.iter().zip(&ends).zip(axes.iter().zip(&steps)) {
        let at = axis(*at, x.rank())?;
        let whole = extent(x.dims(), at);
        let cut = Cut::of(*start, *end, *step, whole)?;
        output = match &cut {
            Cut::Range { start, length } => output.narrow(at, *start, *length)?,
            Cut::Chosen(indices) => output.contiguous()?.index_select(indices, at)?,
        };
        back.push((at, cut, whole));
    }
    Ok(call.made_of_first(output, move |grad| {
        let mut grad = grad.clone();
        for (at, cut, whole) in back.into_iter().rev() {
            grad = match cut {
                Cut::Range { start, .. } => padded(&grad, at, start, whole)?,
                Cut::Chosen(indices) => scattered(&grad, at, &indices, whole)?,
            };
        }
        Ok(grad)
    }))
}

/// The elements that a slice takes along one axis.
enum Cut {
    Range { start: usize, length: usize },
    Chosen(Tensor),
}

impl Cut {
    fn of(start: i64, end: i64, step: i64, whole: usize) -> Result<Self, OpError> {
        let whole = whole as i64;
        let from_front = |at: i64| if at < 0 { at.saturating_add(whole) } else { at };
        if step > 0 {
            let start = from_front(start).clamp(0, whole);
            let end = from_front(end).clamp(start, whole);
            if step == 1 {
                return Ok(Self::Range {
                    start: start as usize,
                    length: (end - start) as usize,
                });
            }
            let chosen = (start..end).step_by(step as usize).collect();
            return Ok(Self::Chosen(at_indices(chosen)?));
        }
        if step == 0 {
            return invalid("a step of 0");
        }
        if whole == 0 {
            return Ok(Self::Chosen(at_indices(Vec::new())?));
        }
        let start = from_front(start).clamp(0, whole - 1);
        let end = from_front(end).clamp(-1, whole - 1);
        let chosen = (end + 1..=start)
            .rev()
            .step_by(step.unsigned_abs() as usize);
        Ok(Self::Chosen(at_indices(chosen.collect())?))
    }
}

/// y = x at the indices along an axis; dx = dy, added at the indices.
fn gather(call: &Call) -> Result<Computed, OpError> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    let at = axis(call.int("axis", 0), x.rank())?;
    let whole = extent(x.dims(), at);
    let chosen = integers(indices)?.into_iter().map(|i| match i {
        i if i < 0 => i + whole as i64,
        i => i,
    });
    let chosen: Vec<i64> = chosen.collect();
    if let Some(outside) = chosen.iter().find(|i| !(0..whole as i64).contains(i)) {
        return invalid(format!("index {outside} of an axis of {whole}"));
    }
    let chosen = at_indices(chosen)?;
    let (outer, inner) = (
        x.dims().get(..at).unwrap_or_default(),
        x.dims().get(at + 1..).unwrap_or_default(),
    );
    let flat = [outer, &[indices.elem_count()], inner].concat();
    let dims = [outer, indices.dims(), inner].concat();
    let output = x.contiguous()?.index_select(&chosen, at)?.reshape(dims)?;
    Ok(call.made_of_first(output, move |grad| {
        scattered(&grad.reshape(flat)?, at, &chosen, whole)
    }))
}
