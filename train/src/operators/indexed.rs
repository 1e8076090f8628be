//! Operators that read or write elements at indices that are computed in the graph.
//!
//! Each is a choice of rows of a flattened tensor. Gradients are added up at the rows that they come from.

use std::cmp::Ordering;

use candle_core::{DType, Device, Tensor};

use crate::error::{OpError, invalid};
use crate::operators::{
    Call, Computed, Pull, TrainOperator, axis, extent, first_flows, flows, integers, sized, stops,
};

pub const OPERATORS: &[TrainOperator] = &[
    flows("GatherND", gather_nd),
    flows("GatherElements", gather_elements),
    flows("ScatterND", scatter_nd),
    flows("ScatterElements", scatter_elements),
    first_flows("TopK", top_k),
    stops("NonZero", non_zero),
    stops("OneHot", one_hot),
];

/// A vector of integers.
pub fn indices(chosen: Vec<i64>) -> Result<Tensor, OpError> {
    let count = chosen.len();
    Ok(Tensor::from_vec(chosen, count, &Device::Cpu)?)
}

/// The gradient of a tensor with size `whole` along axis `at`, from the gradient `grad` of its elements `indices`.
pub fn scattered(
    grad: &Tensor,
    at: usize,
    indices: &Tensor,
    whole: usize,
) -> Result<Tensor, OpError> {
    let mut dims = grad.dims().to_vec();
    if let Some(dim) = dims.get_mut(at) {
        *dim = whole;
    }
    let zero = Tensor::zeros(dims, grad.dtype(), grad.device())?;
    Ok(zero.index_add(indices, &grad.contiguous()?, at)?)
}

/// `index` of an axis of size `size`, counted from the front.
fn from_front(index: i64, size: usize) -> Result<i64, OpError> {
    let front = if index < 0 {
        index + size as i64
    } else {
        index
    };
    match (0..size as i64).contains(&front) {
        true => Ok(front),
        false => invalid(format!("index {index} of an axis of {size}")),
    }
}

/// The numbers of the blocks of a tensor of shape `dims` at the index tuples `indices` [.., k], and the shape of the tensor as
/// rows of blocks.
fn blocks(dims: &[usize], indices: &Tensor) -> Result<(Vec<i64>, Vec<usize>), OpError> {
    let depth = indices.dims().last().copied().unwrap_or(0);
    let Some((indexed, inner)) = dims.split_at_checked(depth) else {
        return invalid(format!(
            "index tuples of {depth} for a tensor of {} axes",
            dims.len()
        ));
    };
    let mut flat = Vec::new();
    for tuple in integers(indices)?.chunks_exact(depth.max(1)) {
        let mut at = 0;
        for (&index, &dim) in tuple.iter().zip(indexed) {
            at = at * dim as i64 + from_front(index, dim)?;
        }
        flat.push(at);
    }
    let count: usize = indexed.iter().product();
    Ok((flat, [&[count], inner].concat()))
}

/// The flat positions in a tensor of shape `dims` of the elements at `indices` along axis `at`, where all other coordinates
/// are those of the index.
fn elements(dims: &[usize], at: usize, indices: &Tensor) -> Result<Vec<i64>, OpError> {
    let mut others = (0..dims.len()).filter(|&axis| axis != at);
    let fits = others.all(|axis| extent(indices.dims(), axis) <= extent(dims, axis));
    if indices.rank() != dims.len() || !fits {
        return invalid(format!(
            "indices of shape {:?} for a tensor of shape {dims:?}",
            indices.dims()
        ));
    }
    let strides: Vec<usize> = (0..dims.len())
        .map(|axis| dims.get(axis + 1..).unwrap_or_default().iter().product())
        .collect();
    let chosen = integers(indices)?;
    let mut flat = Vec::with_capacity(chosen.len());
    for (number, index) in chosen.into_iter().enumerate() {
        let (mut rest, mut position) = (number, 0);
        for (axis, &size) in indices.dims().iter().enumerate().rev() {
            let own = match axis == at {
                true => from_front(index, extent(dims, at))? as usize,
                false => rest % size.max(1),
            };
            rest /= size.max(1);
            position += own * extent(&strides, axis);
        }
        flat.push(position as i64);
    }
    Ok(flat)
}

/// The rows `chosen` of `rows` [n, ..], shaped to `dims`; the gradient goes to input 0, which has as many elements as `rows`.
fn taken(
    call: &Call,
    rows: &Tensor,
    chosen: Vec<i64>,
    dims: &[usize],
) -> Result<Computed, OpError> {
    let (whole, before) = (extent(rows.dims(), 0), call.input(0)?.dims().to_vec());
    let chosen = indices(chosen)?;
    let part = rows.index_select(&chosen, 0)?;
    let flat = part.dims().to_vec();
    Ok(call.made_of_first(part.reshape(dims)?, move |grad| {
        Ok(scattered(&grad.reshape(flat)?, 0, &chosen, whole)?.reshape(before)?)
    }))
}

/// y = blocks of x at index tuples: x [N1..Nk, rest], indices [.., k], without batch axes; dx = dy, added at the blocks.
fn gather_nd(call: &Call) -> Result<Computed, OpError> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    if call.int("batch_dims", 0) != 0 {
        return invalid("batch_dims is not implemented");
    }
    let Some((_, outer)) = indices.dims().split_last() else {
        return invalid("indices are a scalar");
    };
    let (chosen, rows) = blocks(x.dims(), indices)?;
    let dims = [outer, rows.get(1..).unwrap_or_default()].concat();
    taken(call, &x.contiguous()?.reshape(rows)?, chosen, &dims)
}

/// y = elements of x at indices along an axis, all other coordinates alike; dx = dy, added at the elements.
fn gather_elements(call: &Call) -> Result<Computed, OpError> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    let at = axis(call.int("axis", 0), x.rank())?;
    let chosen = elements(x.dims(), at, indices)?;
    taken(
        call,
        &x.flatten_all()?.contiguous()?,
        chosen,
        indices.dims(),
    )
}

/// y = x with `updates` in place of the blocks at index tuples, or added to them.
fn scatter_nd(call: &Call) -> Result<Computed, OpError> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    let (chosen, rows) = blocks(x.dims(), indices)?;
    written(call, &rows, chosen)
}

/// y = x with `updates` in place of the elements at indices along an axis, or added to them.
fn scatter_elements(call: &Call) -> Result<Computed, OpError> {
    let (x, indices) = (call.input(0)?, call.input(1)?);
    let at = axis(call.int("axis", 0), x.rank())?;
    let chosen = elements(x.dims(), at, indices)?;
    written(call, &[x.elem_count()], chosen)
}

/// Input 0, as `rows`, with input 2 in place of its rows `chosen`, or added to them. A row that is written has no gradient
/// in input 0; of several that write one row, the last has it.
fn written(call: &Call, rows: &[usize], chosen: Vec<i64>) -> Result<Computed, OpError> {
    let (x, updates) = (call.input(0)?, call.input(2)?);
    let inner: usize = rows.iter().skip(1).product();
    if updates.elem_count() != chosen.len() * inner {
        return invalid(format!(
            "updates of shape {:?} for {} places of {inner} elements",
            updates.dims(),
            chosen.len()
        ));
    }
    let (before, shape) = (x.dims().to_vec(), updates.dims().to_vec());
    let whole = extent(rows, 0);
    let new: Vec<usize> = [&[chosen.len()], rows.get(1..).unwrap_or_default()].concat();
    let x = x.contiguous()?.reshape(rows)?;
    let updates = updates.contiguous()?.reshape(new)?;
    match call.text("reduction").as_deref() {
        None | Some("none") => {}
        Some("add") => {
            let chosen = indices(chosen)?;
            let sum = x.index_add(&chosen, &updates, 0)?.reshape(before)?;
            let rows = rows.to_vec();
            return Ok(call.made(sum, move |grad| {
                let parts = grad.contiguous()?.reshape(rows)?.index_select(&chosen, 0)?;
                Ok(vec![Some(grad.clone()), None, Some(parts.reshape(shape)?)])
            }));
        }
        Some(other) => return invalid(format!("reduction {other} is not implemented")),
    }
    let mut from: Vec<i64> = (0..whole as i64).collect();
    for (number, &row) in chosen.iter().enumerate() {
        if let Some(place) = from.get_mut(row as usize) {
            *place = (whole + number) as i64;
        }
    }
    let (from, count, rows) = (indices(from)?, chosen.len(), rows.to_vec());
    let all = match count {
        0 => x,
        _ => Tensor::cat(&[&x, &updates], 0)?,
    };
    let output = all.index_select(&from, 0)?.reshape(before.as_slice())?;
    Ok(call.made(output, move |grad| {
        let parts = scattered(&grad.contiguous()?.reshape(rows)?, 0, &from, whole + count)?;
        let old = parts.narrow(0, 0, whole)?.reshape(before)?;
        let new = parts.narrow(0, whole, count)?.reshape(shape)?;
        Ok(vec![Some(old), None, Some(new)])
    }))
}

/// The k largest or smallest elements along an axis, in order, and their indices; of equal ones, those with lower indices
/// first. dx = the gradient of the values, at the indices.
fn top_k(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let at = axis(call.int("axis", -1), x.rank())?;
    let most = call.integers(1)?.and_then(|k| k.first().copied());
    let most = usize::try_from(most.unwrap_or(0)).unwrap_or(0);
    let (last, largest) = (x.rank().saturating_sub(1), call.int("largest", 1) != 0);
    let turned = x.transpose(at, last)?.contiguous()?;
    let width = extent(turned.dims(), last).max(1);
    let chosen = match turned.dtype() {
        DType::F32 => first(
            &turned.flatten_all()?.to_vec1::<f32>()?,
            width,
            most,
            largest,
        ),
        _ => first(&integers(&turned)?, width, most, largest),
    };
    let mut dims = turned.dims().to_vec();
    if let Some(size) = dims.last_mut() {
        *size = most.min(width);
    }
    let places = Tensor::from_vec(chosen, dims, &Device::Cpu)?;
    let best = turned.gather(&places, last)?;
    let zero = call.tracks(0).then(|| turned.zeros_like()).transpose()?;
    let back = places.clone();
    let pull: Option<Pull> = zero.map(|zero| -> Pull {
        Box::new(move |grads| {
            let Some(grad) = grads.first().and_then(Option::as_ref) else {
                return Ok(vec![None]);
            };
            let grad = grad.transpose(at, last)?.contiguous()?;
            let whole = zero.scatter_add(&back, &grad, last)?;
            Ok(vec![Some(whole.transpose(at, last)?.contiguous()?)])
        })
    });
    let outputs = [best, places].map(|t| t.transpose(at, last)?.contiguous());
    Ok(Computed {
        outputs: outputs.into_iter().collect::<Result<_, _>>()?,
        pull,
    })
}

/// The places of the `most` largest or smallest numbers of each row of `width`, in order. Of equal ones the first comes first.
fn first<T: PartialOrd>(values: &[T], width: usize, most: usize, largest: bool) -> Vec<i64> {
    let mut chosen = Vec::new();
    for row in values.chunks(width) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        let compared = |a: &usize, b: &usize| row.get(*a).partial_cmp(&row.get(*b));
        order.sort_by(|a, b| {
            let order = compared(a, b).unwrap_or(Ordering::Equal);
            if largest { order.reverse() } else { order }
        });
        chosen.extend(order.into_iter().take(most).map(|i| i as i64));
    }
    chosen
}

/// The coordinates [axes, n] of the n elements that are not zero.
fn non_zero(call: &Call) -> Result<Computed, OpError> {
    // A scalar counts as a vector of one element.
    let x = match call.input(0)? {
        scalar if scalar.rank() == 0 => scalar.reshape(1)?,
        x => x.clone(),
    };
    let values: Vec<f32> = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let found: Vec<usize> = (0..values.len())
        .filter(|&i| values.get(i).is_some_and(|&v| v != 0.0))
        .collect();
    let mut coordinates = Vec::with_capacity(x.rank() * found.len());
    for axis in 0..x.rank() {
        let inner: usize = x
            .dims()
            .get(axis + 1..)
            .unwrap_or_default()
            .iter()
            .product();
        let size = extent(x.dims(), axis).max(1);
        coordinates.extend(found.iter().map(|i| (i / inner.max(1) % size) as i64));
    }
    Ok(Tensor::from_vec(coordinates, (x.rank(), found.len()), &Device::Cpu)?.into())
}

/// A new axis of `depth` elements: the second of `values` at the index, the first elsewhere.
fn one_hot(call: &Call) -> Result<Computed, OpError> {
    let (chosen, values) = (call.input(0)?, call.input(2)?);
    let depth = call.integers(1)?.and_then(|d| d.first().copied());
    let depth = usize::try_from(depth.unwrap_or(0)).unwrap_or(0);
    sized([chosen.elem_count(), depth].into_iter())?;
    let at = axis(call.int("axis", -1), chosen.rank() + 1)?;
    let on = integers(chosen)?.into_iter().flat_map(|index| {
        let index = if index < 0 {
            index + depth as i64
        } else {
            index
        };
        (0..depth as i64).map(move |i| i64::from(i == index))
    });
    let rows = values
        .flatten_all()?
        .index_select(&indices(on.collect())?, 0)?;
    let dims = [chosen.dims(), &[depth]].concat();
    let mut order: Vec<usize> = (0..chosen.rank()).collect();
    order.insert(at, chosen.rank());
    Ok(rows.reshape(dims)?.permute(order)?.contiguous()?.into())
}
