//! Shape inference of operators that pick, rank, count or pad elements along axes: `TopK`, `ArgMax`, `OneHot`,
//! `Compress`, `Pad`, `Resize`.

use tract_data::prelude::TDim;

use crate::facts::content::Content;
use crate::facts::shapes::axis;
use crate::facts::{Fact, Facts, Shape, dim};
use crate::graph::{attribute, input_at, int_attribute};
use crate::onnx::{NodeProto, tensor_proto::DataType};

const INT64: Option<i32> = Some(DataType::Int64 as i32);

/// Whether `size` is a number below zero, which no size is.
fn is_negative(size: &TDim) -> bool {
    size.as_i64().is_some_and(|n| n < 0)
}

/// `TopK`: values and indices. k is an input since opset 10, an attribute before.
pub fn top_k(facts: &Facts, node: &NodeProto, input: &Fact) -> Vec<Fact> {
    let shape = || {
        let mut shape = input.shape.clone()?;
        let at = axis(int_attribute(node, "axis", -1), shape.len())?;
        let count = match input_at(node, 1) {
            Some(k) => match facts.ints(k) {
                Some([count]) if !is_negative(count) => count.clone(),
                _ => facts.fresh(),
            },
            None => TDim::Val(attribute(node, "k")?.i().max(0)),
        };
        *shape.get_mut(at)? = count;
        Some(shape)
    };
    let shape: Option<Shape> = shape();
    vec![
        Fact::new(input.elem_type, shape.clone()),
        Fact::new(INT64, shape),
    ]
}

/// `ArgMax` and `ArgMin`: indices, with the axis of size one or without it.
pub fn arg_max(node: &NodeProto, input: &Fact) -> Fact {
    let shape = || {
        let mut shape = input.shape.clone()?;
        let at = axis(int_attribute(node, "axis", 0), shape.len())?;
        match int_attribute(node, "keepdims", 1) {
            0 => drop(shape.remove(at)),
            _ => *shape.get_mut(at)? = TDim::Val(1),
        }
        Some(shape)
    };
    Fact::new(INT64, shape())
}

/// `OneHot` of indices, depth and values: the indices with one more axis, of size depth; the type is that of the values.
pub fn one_hot(facts: &Facts, node: &NodeProto, inputs: &[&Fact]) -> Option<Fact> {
    let [indices, depth, values] = inputs else {
        return None;
    };
    let shape = || {
        let mut shape = indices.shape.clone()?;
        let at = axis(int_attribute(node, "axis", -1), shape.len() + 1)?;
        let depth = match &depth.content {
            Some(Content::Ints(depth)) => depth.first().cloned(),
            Some(Content::Floats(depth)) => depth.first().map(|&n| TDim::Val(n as i64)),
            None => None,
        };
        let depth = depth.filter(|size| !is_negative(size));
        shape.insert(at, depth.unwrap_or_else(|| facts.fresh()));
        Some(shape)
    };
    Some(Fact::new(values.elem_type, shape()))
}

/// `Compress`: the picked slices of one axis, or the picked elements of all.
pub fn compress(facts: &Facts, node: &NodeProto, input: &Fact) -> Option<Shape> {
    let Some(at) = attribute(node, "axis") else {
        return Some(vec![facts.fresh()]);
    };
    let mut shape = input.shape.clone()?;
    let at = axis(at.i(), shape.len())?;
    *shape.get_mut(at)? = facts.fresh();
    Some(shape)
}

/// `Resize` and `Upsample`: every axis may have another size.
pub fn resized(facts: &Facts, input: &Fact) -> Option<Shape> {
    let sizes = input.shape.as_ref()?.iter();
    Some(sizes.map(|_| facts.fresh()).collect())
}

/// `Pad`: the sizes with what is added, or cut off where it is negative, at both ends of the axes. The pads are an input since
/// opset 11, an attribute before.
pub fn padded(facts: &Facts, node: &NodeProto, input: &Fact) -> Option<Shape> {
    let mut shape = input.shape.clone()?;
    let attribute = || {
        let pads = attribute(node, "pads").or_else(|| attribute(node, "paddings"))?;
        Some(pads.ints.iter().map(|&n| TDim::Val(n)).collect())
    };
    let pads: Option<Shape> = match input_at(node, 1) {
        Some(pads) => facts.ints(pads).map(<[TDim]>::to_vec),
        None => Some(attribute()?),
    };
    let axes = match input_at(node, 3) {
        Some(axes) => facts.integers(axes),
        None => Some((0..shape.len() as i64).collect()),
    };
    let (Some(pads), Some(axes)) = (pads, axes) else {
        return Some(shape.iter().map(|_| facts.fresh()).collect());
    };
    let (begins, ends) = (pads.get(..axes.len())?, pads.get(axes.len()..)?);
    if ends.len() != axes.len() {
        return None;
    }
    for ((at, begin), end) in axes.iter().zip(begins).zip(ends) {
        let at = axis(*at, shape.len())?;
        let size = shape.get_mut(at)?;
        let sum = dim::add(begin, end).and_then(|more| dim::add(size, &more));
        let sum = sum.filter(|sum| !is_negative(sum));
        *size = sum.unwrap_or_else(|| facts.fresh());
    }
    Some(shape)
}
