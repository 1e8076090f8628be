//! Shape inference of operators that move a window over the axes behind batch and channels: convolutions and pools.

use tract_data::prelude::TDim;

use crate::facts::{Fact, Facts, Shape, dim};
use crate::graph::{attribute, int_attribute};
use crate::onnx::NodeProto;

/// The attribute `name`, one number for each of `count` spatial axes; `default` for each where it is missing.
fn numbers(node: &NodeProto, name: &str, count: usize, default: i64) -> Option<Vec<i64>> {
    let given = attribute(node, name).map(|a| a.ints.as_slice());
    match given.filter(|given| !given.is_empty()) {
        None => Some(vec![default; count]),
        Some(given) => (given.len() == count).then(|| given.to_vec()),
    }
}

/// How `auto_pad` sets the padding.
enum Padding {
    /// By the attribute `pads`: the sum of both ends of each axis.
    Given(Vec<i64>),
    /// `SAME_UPPER` and `SAME_LOWER`: the output has the size of the input divided by the stride.
    Same,
}

fn padding(node: &NodeProto, count: usize) -> Option<Padding> {
    let auto = attribute(node, "auto_pad").map_or(&b""[..], |a| a.s());
    match auto {
        b"" | b"NOTSET" => {
            let pads = numbers(node, "pads", 2 * count, 0)?;
            let (begins, ends) = (pads.get(..count)?, pads.get(count..)?);
            let sums = begins.iter().zip(ends);
            Some(Padding::Given(
                sums.map(|(a, b)| a.saturating_add(*b)).collect(),
            ))
        }
        b"VALID" => Some(Padding::Given(vec![0; count])),
        b"SAME_UPPER" | b"SAME_LOWER" => Some(Padding::Same),
        _ => None,
    }
}

/// The sizes of spatial axes after a window of `kernel` has moved over `sizes`. A size that depends on a rounded
/// quotient of symbols is a fresh symbol.
fn moved(facts: &Facts, node: &NodeProto, sizes: &[TDim], kernel: &[TDim]) -> Option<Shape> {
    let count = sizes.len();
    let strides = numbers(node, "strides", count, 1)?;
    let dilations = numbers(node, "dilations", count, 1)?;
    let padding = padding(node, count)?;
    let ceiling = int_attribute(node, "ceil_mode", 0) != 0;
    let one = |at: usize| -> Option<TDim> {
        let (size, stride) = (sizes.get(at)?, *strides.get(at)?);
        let room = match &padding {
            Padding::Same => dim::sub(size, &TDim::Val(1))?,
            Padding::Given(pads) => {
                let reach = dim::sub(kernel.get(at)?, &TDim::Val(1))?;
                let reach = dim::mul(&reach, &TDim::Val(*dilations.get(at)?))?;
                let padded = dim::add(size, &TDim::Val(*pads.get(at)?))?;
                dim::sub(&dim::sub(&padded, &reach)?, &TDim::Val(1))?
            }
        };
        let steps = match (stride, room.as_i64()) {
            (1, _) => room,
            (stride, Some(n)) if stride > 1 && n >= 0 && !ceiling => TDim::Val(n / stride),
            _ => return None,
        };
        dim::add(&steps, &TDim::Val(1)).filter(|size| size.as_i64().is_none_or(|n| n >= 0))
    };
    Some(
        (0..count)
            .map(|at| one(at).unwrap_or_else(|| facts.fresh()))
            .collect(),
    )
}

/// `Conv` of `input` [B, C, ..] with `weight` [M, C / group, ..]: [B, M, ..].
pub fn convolved(facts: &Facts, node: &NodeProto, input: &Fact, weight: &Fact) -> Option<Shape> {
    let [batch, _, sizes @ ..] = input.shape.as_deref()? else {
        return None;
    };
    let [channels, _, kernel @ ..] = weight.shape.as_deref()? else {
        return None;
    };
    if kernel.len() != sizes.len() {
        return None;
    }
    let mut shape = vec![batch.clone(), channels.clone()];
    shape.extend(moved(facts, node, sizes, kernel)?);
    Some(shape)
}

/// `ConvTranspose` of `input` [B, C, ..] with `weight` [C, M / group, ..]: [B, M, ..]. Sizes that `output_shape` or
/// `auto_pad` sets are fresh symbols.
pub fn transposed(facts: &Facts, node: &NodeProto, input: &Fact, weight: &Fact) -> Option<Shape> {
    let [batch, _, sizes @ ..] = input.shape.as_deref()? else {
        return None;
    };
    let [_, part, kernel @ ..] = weight.shape.as_deref()? else {
        return None;
    };
    let count = sizes.len();
    let channels = dim::mul(part, &TDim::Val(int_attribute(node, "group", 1)))?;
    let strides = numbers(node, "strides", count, 1)?;
    let dilations = numbers(node, "dilations", count, 1)?;
    let more = numbers(node, "output_padding", count, 0)?;
    let given = attribute(node, "output_shape").is_none();
    let pads = match padding(node, count)? {
        Padding::Given(pads) if given => Some(pads),
        _ => None,
    };
    let one = |at: usize| -> Option<TDim> {
        let steps = dim::sub(sizes.get(at)?, &TDim::Val(1))?;
        let steps = dim::mul(&steps, &TDim::Val(*strides.get(at)?))?;
        let reach = dim::sub(kernel.get(at)?, &TDim::Val(1))?;
        let reach = dim::mul(&reach, &TDim::Val(*dilations.get(at)?))?;
        let rest = more.get(at)?.checked_sub(*pads.as_ref()?.get(at)?)?;
        let rest = rest.checked_add(1)?;
        dim::add(&dim::add(&steps, &reach)?, &TDim::Val(rest))
            .filter(|size| size.as_i64().is_none_or(|n| n >= 0))
    };
    let mut shape = vec![batch.clone(), channels];
    shape.extend((0..count).map(|at| one(at).unwrap_or_else(|| facts.fresh())));
    Some(shape)
}

/// `MaxPool`, `AveragePool` and `LpPool` of `input` [B, C, ..].
pub fn pooled(facts: &Facts, node: &NodeProto, input: &Fact) -> Option<Shape> {
    let [batch, channels, sizes @ ..] = input.shape.as_deref()? else {
        return None;
    };
    let kernel = &attribute(node, "kernel_shape")?.ints;
    if kernel.len() != sizes.len() {
        return None;
    }
    let kernel: Shape = kernel.iter().map(|&n| TDim::Val(n)).collect();
    let mut shape = vec![batch.clone(), channels.clone()];
    shape.extend(moved(facts, node, sizes, &kernel)?);
    Some(shape)
}

/// `GlobalAveragePool`, `GlobalMaxPool` and `GlobalLpPool` of `input` [B, C, ..]: [B, C, 1, ..].
pub fn pooled_whole(input: &Fact) -> Option<Shape> {
    let [batch, channels, sizes @ ..] = input.shape.as_deref()? else {
        return None;
    };
    let mut shape = vec![batch.clone(), channels.clone()];
    shape.extend(sizes.iter().map(|_| TDim::Val(1)));
    Some(shape)
}
