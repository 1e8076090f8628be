//! Shape inference of matrix products and reductions.

use tract_data::prelude::TDim;

use crate::facts::content::Content;
use crate::facts::shapes::axis;
use crate::facts::{Fact, Facts, Shape, axes, dim, shapes};
use crate::graph::{attribute, input_at, int_attribute};
use crate::onnx::NodeProto;

/// The shape of the matrix product of tensors of shapes `a` and `b`, with batch axes broadcast.
pub fn matmul(facts: &Facts, a: &[TDim], b: &[TDim]) -> Option<Shape> {
    let ([batch_a @ .., rows, _], [batch_b @ .., _, columns]) = (a, b) else {
        return None;
    };
    let mut shape = shapes::filled(shapes::broadcast(&[batch_a, batch_b]), || facts.fresh());
    shape.push(rows.clone());
    shape.push(columns.clone());
    Some(shape)
}

/// `Gemm` of `a` and `b`, each possibly transposed.
pub fn gemm(node: &NodeProto, a: &Fact, b: &Fact) -> Option<Fact> {
    let (sizes_a, sizes_b) = (a.shape.as_ref()?, b.shape.as_ref()?);
    let rows = sizes_a.get(usize::from(int_attribute(node, "transA", 0) != 0))?;
    let columns = sizes_b.get(usize::from(int_attribute(node, "transB", 0) == 0))?;
    Some(Fact::new(
        a.elem_type,
        Some(vec![rows.clone(), columns.clone()]),
    ))
}

/// A reduction over axes. `ReduceProd`, `ReduceMax` and `ReduceMin` of known integers to one element are folded:
/// exporters count elements with `ReduceProd`.
pub fn reduced(facts: &Facts, node: &NodeProto, input: &Fact) -> Option<Fact> {
    let sizes = input.shape.as_deref()?;
    let keep = int_attribute(node, "keepdims", 1) != 0;
    let named = input_at(node, 1).is_some() || attribute(node, "axes").is_some();
    let named = match named {
        true => axes(facts, node)?,
        false => Vec::new(),
    };
    // Without axes, or with an empty list of them, all axes are reduced, unless an attribute says that none is.
    let all = named.is_empty() && int_attribute(node, "noop_with_empty_axes", 0) == 0;
    let mut gone = vec![all; sizes.len()];
    for a in named {
        *gone.get_mut(axis(a, sizes.len())?)? = true;
    }
    let left = |(size, gone): (&TDim, bool)| match (gone, keep) {
        (false, _) => Some(size.clone()),
        (true, true) => Some(TDim::Val(1)),
        (true, false) => None,
    };
    let shape: Shape = sizes.iter().zip(gone).filter_map(left).collect();
    let content = match &input.content {
        Some(Content::Ints(sizes))
            if node.op_type() == "ReduceProd" && dim::product(&shape) == Some(TDim::Val(1)) =>
        {
            dim::product(sizes).map(|n| Content::Ints(vec![n]))
        }
        Some(Content::Ints(values)) if shape.iter().all(|n| *n == TDim::Val(1)) => {
            let values: Option<Vec<i64>> = values.iter().map(TDim::as_i64).collect();
            let one = values.and_then(|values| match node.op_type() {
                "ReduceMax" => values.into_iter().max(),
                "ReduceMin" => values.into_iter().min(),
                _ => None,
            });
            one.map(|n| Content::Ints(vec![TDim::Val(n)]))
        }
        _ => None,
    };
    Some(Fact::new(input.elem_type, Some(shape)).holding(content))
}
