//! Operators that change only the shape or the order of elements. Their gradient has the old shape and order.

use candle_core::Tensor;

use crate::error::{OpError, invalid};
use crate::operators::broadcast::{common, reduced};
use crate::operators::{Call, Computed, TrainOperator, axis, extent, flows, sized};

pub const OPERATORS: &[TrainOperator] = &[
    flows("Reshape", reshape),
    flows("Transpose", transpose),
    flows("Unsqueeze", unsqueeze),
    flows("Squeeze", squeeze),
    flows("Flatten", flatten),
    flows("Expand", expand),
    flows("Tile", tile),
    flows("Trilu", triangle),
    flows("Identity", identity),
];

/// Input 0 with the shape `dims`.
fn shaped(call: &Call, dims: &[usize]) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let before = x.dims().to_vec();
    Ok(call.made_of_first(x.reshape(dims)?, move |grad| Ok(grad.reshape(before)?)))
}

fn reshape(call: &Call) -> Result<Computed, OpError> {
    let before = call.input(0)?.dims();
    let wanted = call.integers(1)?.unwrap_or_default();
    let keep_zero = call.int("allowzero", 0) == 0;
    let mut dims = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (at, &dim) in wanted.iter().enumerate() {
        dims.push(match dim {
            0 if keep_zero => extent(before, at),
            -1 => {
                open = Some(at);
                1
            }
            dim => {
                usize::try_from(dim).map_err(|_| OpError::Invalid(format!("shape {wanted:?}")))?
            }
        });
    }
    if let Some(slot) = open.and_then(|at| dims.get_mut(at)) {
        *slot = 0;
        let known: usize = dims.iter().filter(|&&d| d != 0).product();
        let rest = before.iter().product::<usize>() / known.max(1);
        if let Some(slot) = open.and_then(|at| dims.get_mut(at)) {
            *slot = rest;
        }
    }
    shaped(call, &dims)
}

/// y = x with its axes permuted; dx = dy permuted back.
fn transpose(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let order: Vec<usize> = match call.ints("perm") {
        Some(order) => order
            .iter()
            .map(|&a| axis(a, x.rank()))
            .collect::<Result<_, _>>()?,
        None => (0..x.rank()).rev().collect(),
    };
    let mut back: Vec<(usize, usize)> = order.iter().copied().zip(0..).collect();
    back.sort_unstable();
    let back: Vec<usize> = back.into_iter().map(|(_, from)| from).collect();
    Ok(call.made_of_first(x.permute(order)?, move |grad| Ok(grad.permute(back)?)))
}

/// The axes of an operator: input 1, or an attribute in older opsets.
fn axes(call: &Call) -> Result<Option<Vec<i64>>, OpError> {
    Ok(call.integers(1)?.or_else(|| call.ints("axes")))
}

fn unsqueeze(call: &Call) -> Result<Computed, OpError> {
    let before = call.input(0)?.dims();
    let axes = axes(call)?.unwrap_or_default();
    let rank = before.len() + axes.len();
    let new = axes
        .iter()
        .map(|&a| axis(a, rank))
        .collect::<Result<Vec<_>, _>>()?;
    let mut old = before.iter();
    let dims: Vec<usize> = (0..rank)
        .map(|at| match new.contains(&at) {
            true => 1,
            false => old.next().copied().unwrap_or(1),
        })
        .collect();
    shaped(call, &dims)
}

fn squeeze(call: &Call) -> Result<Computed, OpError> {
    let before = call.input(0)?.dims();
    let gone = match axes(call)? {
        Some(axes) => axes
            .iter()
            .map(|&a| axis(a, before.len()))
            .collect::<Result<Vec<_>, _>>()?,
        None => (0..before.len())
            .filter(|&at| extent(before, at) == 1)
            .collect(),
    };
    let kept = before
        .iter()
        .enumerate()
        .filter(|(at, _)| !gone.contains(at));
    let dims: Vec<usize> = kept.map(|(_, &dim)| dim).collect();
    shaped(call, &dims)
}

fn flatten(call: &Call) -> Result<Computed, OpError> {
    let dims = call.input(0)?.dims();
    let at = call.int("axis", 1);
    let at = match at == dims.len() as i64 {
        true => dims.len(),
        false => axis(at, dims.len())?,
    };
    let Some((outer, inner)) = dims.split_at_checked(at) else {
        return invalid(format!("axis {at} of {dims:?}"));
    };
    shaped(call, &[outer.iter().product(), inner.iter().product()])
}

/// y = x, repeated along the axes in which the target shape is larger; dx = the sum over the copies.
fn expand(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let wanted: Vec<usize> = call
        .integers(1)?
        .unwrap_or_default()
        .iter()
        .map(|&d| d.max(0) as usize)
        .collect();
    let dims = common(x.dims(), &wanted)?;
    let before = x.dims().to_vec();
    Ok(call.made_of_first(x.broadcast_as(dims)?, move |grad| reduced(grad, &before)))
}

/// y = x, repeated as a whole along each axis; dx = the sum over the copies.
fn tile(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let times = call.integers(1)?.unwrap_or_default();
    let times: Vec<usize> = times.iter().map(|&n| n.max(0) as usize).collect();
    if times.len() != x.rank() {
        return invalid(format!("{} repeats of {} axes", times.len(), x.rank()));
    }
    let before = x.dims().to_vec();
    let pairs = times.iter().zip(&before);
    let parted: Vec<usize> = pairs.flat_map(|(&n, &size)| [n, size]).collect();
    let copies: Vec<usize> = (0..times.len()).map(|axis| 2 * axis).collect();
    sized(parted.iter().copied())?;
    let whole: Vec<usize> = times
        .iter()
        .zip(&before)
        .map(|(n, size)| n * size)
        .collect();
    let single: Vec<usize> = before.iter().flat_map(|&size| [1, size]).collect();
    let output = x.reshape(single)?.broadcast_as(parted.as_slice())?;
    let output = output.contiguous()?.reshape(whole)?;
    Ok(call.made_of_first(output, move |grad| {
        let sum = grad.contiguous()?.reshape(parted)?.sum(copies)?;
        Ok(sum.reshape(before)?)
    }))
}

/// y = the upper or lower triangle of the last two axes of x, and zeros; dx = that of dy.
fn triangle(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let above = call.integers(1)?.and_then(|k| k.first().copied());
    let (above, upper) = (above.unwrap_or(0), call.int("upper", 1) != 0);
    let [.., rows, columns] = x.dims() else {
        return invalid("a triangle needs two axes");
    };
    let (rows, columns) = (*rows as i64, *columns as i64);
    let cells = (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j)));
    let kept = cells.map(|(i, j)| match upper {
        true => u8::from(j - i >= above),
        false => u8::from(j - i <= above),
    });
    let kept = Tensor::from_vec(
        kept.collect(),
        (rows as usize, columns as usize),
        x.device(),
    )?;
    let kept = kept.broadcast_as(x.dims())?.contiguous()?;
    let zeros = x.zeros_like()?.contiguous()?;
    let output = kept.where_cond(&x.contiguous()?, &zeros)?;
    Ok(call.made_of_first(output, move |grad| {
        Ok(kept.where_cond(&grad.contiguous()?, &zeros)?)
    }))
}

fn identity(call: &Call) -> Result<Computed, OpError> {
    let x: &Tensor = call.input(0)?;
    Ok(call.made_of_first(x.clone(), |grad| Ok(grad.clone())))
}
