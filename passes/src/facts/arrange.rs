//! Shape inference of `Shape` and `Size`, and of operators that reshape, permute or repeat a tensor.

use tract_data::prelude::TDim;

use crate::facts::content::Content;
use crate::facts::shapes::axis;
use crate::facts::{Fact, Facts, Shape, axes, dim, shape_range, shapes};
use crate::graph::{attribute, input_at, int_attribute};
use crate::onnx::{NodeProto, tensor_proto::DataType};

const INT64: Option<i32> = Some(DataType::Int64 as i32);

/// `Shape`, with `start` and `end`.
pub fn shape(node: &NodeProto, input: &Fact) -> Fact {
    let sizes = input.shape.as_ref();
    let Some(sizes) = sizes.and_then(|s| s.get(shape_range(node, s.len()))) else {
        return Fact::new(INT64, None);
    };
    let rank = TDim::from(sizes.len());
    Fact::new(INT64, Some(vec![rank])).holding(Some(Content::Ints(sizes.to_vec())))
}

/// `Size`.
pub fn size(input: &Fact) -> Fact {
    let count = input.shape.as_ref().and_then(dim::product);
    Fact::new(INT64, Some(Vec::new())).holding(count.map(|n| Content::Ints(vec![n])))
}

/// `Reshape`.
pub fn reshape(facts: &Facts, node: &NodeProto, input: &Fact) -> Option<Fact> {
    let target = facts.ints(node.input.get(1)?)?;
    let allow_zero = int_attribute(node, "allowzero", 0) != 0;
    let sizes = shapes::reshape(input.shape.as_deref(), target, allow_zero)?;
    Some(rearranged(
        input,
        shapes::filled(sizes, || facts.fresh()),
        true,
    ))
}

/// `Transpose`.
pub fn transpose(node: &NodeProto, input: &Fact) -> Option<Fact> {
    let perm = attribute(node, "perm").map_or(&[][..], |a| a.ints.as_slice());
    let shape = shapes::transpose(input.shape.as_ref()?, perm)?;
    let in_order = shape.len() <= 1;
    Some(rearranged(input, shape, in_order))
}

/// `Unsqueeze`.
pub fn unsqueeze(facts: &Facts, node: &NodeProto, input: &Fact) -> Option<Fact> {
    let sizes = input.shape.as_ref()?;
    let new = shapes::unsqueezed(&axes(facts, node)?, sizes.len())?;
    let mut old = sizes.iter().cloned();
    let size = |&new: &bool| if new { Some(TDim::Val(1)) } else { old.next() };
    let shape = new.iter().map(size).collect::<Option<Shape>>()?;
    Some(rearranged(input, shape, true))
}

/// `Squeeze`.
pub fn squeeze(facts: &Facts, node: &NodeProto, input: &Fact) -> Option<Fact> {
    let sizes = input.shape.as_ref()?;
    let named = input_at(node, 1).is_some() || attribute(node, "axes").is_some();
    let named = match named {
        true => Some(axes(facts, node)?),
        false => None,
    };
    let gone = shapes::squeezed(named.as_deref(), sizes)?;
    let left = sizes.iter().zip(gone).filter(|(_, gone)| !gone);
    let shape = left.map(|(size, _)| size.clone()).collect();
    Some(rearranged(input, shape, true))
}

/// `Flatten`.
pub fn flatten(node: &NodeProto, input: &Fact) -> Option<Fact> {
    let sizes = input.shape.as_ref()?;
    let at = int_attribute(node, "axis", 1);
    let at = if at == sizes.len() as i64 {
        sizes.len()
    } else {
        axis(at, sizes.len())?
    };
    let (outer, inner) = (sizes.get(..at)?, sizes.get(at..)?);
    let shape = vec![dim::product(outer)?, dim::product(inner)?];
    Some(rearranged(input, shape, false))
}

/// `Expand`.
pub fn expand(facts: &Facts, node: &NodeProto, input: &Fact) -> Option<Fact> {
    let target = shapes::sizes(facts.ints(node.input.get(1)?)?)?;
    let sizes = shapes::broadcast(&[input.shape.as_ref()?, &target]);
    let shape = shapes::filled(sizes, || facts.fresh());
    let content = input.content.as_ref().and_then(|c| c.repeated(&shape));
    Some(rearranged(input, shape, false).holding(content))
}

/// `Tile`.
pub fn tile(facts: &Facts, node: &NodeProto, input: &Fact) -> Option<Fact> {
    let repeats = shapes::sizes(facts.ints(node.input.get(1)?)?)?;
    let sizes = input.shape.as_ref()?;
    if sizes.len() != repeats.len() {
        return None;
    }
    let pairs = sizes.iter().zip(&repeats);
    let shape = pairs.map(|(a, b)| dim::mul(a, b)).collect();
    Some(rearranged(
        input,
        shapes::filled(shape, || facts.fresh()),
        false,
    ))
}

/// `input` with the shape `shape`. Its known elements are kept if their row-major order is unchanged (`in_order`).
fn rearranged(input: &Fact, shape: Shape, in_order: bool) -> Fact {
    let content = input.content.clone().filter(|_| in_order);
    Fact::new(input.elem_type, Some(shape)).holding(content)
}
