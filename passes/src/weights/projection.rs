//! The projection weight of keys, values or queries, searched back through biases, norms, rotations and slices of a
//! packed product.

use std::collections::HashSet;

use ndarray::Array2;

use crate::facts::{Facts, shapes};
use crate::graph::weight::Weight;
use crate::graph::{Graph, int_attribute, is_op};
use crate::onnx::NodeProto;
use crate::onnx::stored::Model;
use crate::weights::matrix::{matrix, numbers};

/// The weight [E, width] of the projection that `value` is computed from, in f64.
///
/// `None` if the projection is not a product with a stored weight that can be read; factors are then computed without it.
pub fn projection(
    model: &Model,
    graph: &Graph,
    facts: &Facts,
    value: &str,
    width: usize,
) -> Option<Array2<f64>> {
    let mut seen = HashSet::new();
    let mut open = vec![(value, None)];
    while let Some((value, offset)) = open.pop() {
        if !seen.insert(value) {
            continue;
        }
        let Some((_, node)) = graph.producer(value) else {
            continue;
        };
        let transposed = is_op(node, "Gemm") && int_attribute(node, "transB", 0) != 0;
        if (is_op(node, "MatMul") || is_op(node, "Gemm"))
            && let Some(weight) = node.input.get(1).and_then(|w| Weight::of(graph, w))
        {
            let weight = matrix(model, &weight, transposed)?;
            let weight = normalized(model, graph, node.input.first(), weight);
            return columns(weight, offset, width);
        }
        if let Some(offset) = passes(facts, node, value, width, offset) {
            open.extend(node.input.iter().map(|input| (input.as_str(), offset)));
        }
    }
    None
}

/// `Some` if the search continues through `node`, with the column offset in a packed product.
fn passes(
    facts: &Facts,
    node: &NodeProto,
    value: &str,
    width: usize,
    offset: Option<usize>,
) -> Option<Option<usize>> {
    let packed = || {
        let shape = facts.shape(node.input.first()?)?;
        (shape.len() == 3 && shape.last()?.as_i64()? > width as i64).then_some(())
    };
    match node.op_type() {
        "Slice" if packed().is_some() => {
            let start = facts.integers(node.input.get(1)?)?;
            let start = usize::try_from(*start.first()?).ok()?;
            Some(Some(offset.unwrap_or(0) + start))
        }
        "Split" if packed().is_some() => {
            let before = node.output.iter().position(|o| o == value)?;
            let sizes = node.output.iter().take(before).map(|o| {
                let shape = facts.shape(o)?;
                usize::try_from(shape.last()?.as_i64()?).ok()
            });
            let start = sizes.sum::<Option<usize>>()?;
            let at = shapes::axis(int_attribute(node, "axis", 0), 3)?;
            (at == 2).then_some(Some(offset.unwrap_or(0) + start))
        }
        "Identity"
        | "Reshape"
        | "Transpose"
        | "Unsqueeze"
        | "Squeeze"
        | "Add"
        | "Sub"
        | "Mul"
        | "Div"
        | "Neg"
        | "Concat"
        | "Slice"
        | "Split"
        | "Cast"
        | "RotaryEmbedding"
        | "RMSNormalization"
        | "SimplifiedLayerNormalization" => Some(offset),
        _ => None,
    }
}

fn columns(weight: Array2<f64>, offset: Option<usize>, width: usize) -> Option<Array2<f64>> {
    let start = offset.unwrap_or(0);
    let fits = match offset {
        Some(start) => start + width <= weight.ncols(),
        None => weight.ncols() == width,
    };
    // A query projection of 7B parameters takes 100 MB in f64: it is not held twice.
    if fits && weight.ncols() == width {
        return Some(weight);
    }
    fits.then(|| {
        weight
            .slice(ndarray::s![.., start..start + width])
            .to_owned()
    })
}

/// `weight` [E, any] with row e multiplied by element e of the gain of the normalization that makes its input `value`:
/// the input of that gain is assumed to be white (identity covariance).
fn normalized(
    model: &Model,
    graph: &Graph,
    value: Option<&String>,
    mut weight: Array2<f64>,
) -> Array2<f64> {
    let gain = || {
        let (_, node) = graph.producer(graph.resolve(value?))?;
        let last = matches!(
            node.op_type(),
            "Mul"
                | "RMSNormalization"
                | "SimplifiedLayerNormalization"
                | "LayerNormalization"
                | "SkipSimplifiedLayerNormalization"
        );
        let stored = node
            .input
            .iter()
            .filter(|_| last)
            .filter_map(|i| graph.initializer(graph.resolve(i)))
            .find(|t| t.dims.iter().product::<i64>() == weight.nrows() as i64)?;
        numbers(model, stored)
    };
    if let Some(gain) = gain() {
        for (mut row, gain) in weight.rows_mut().into_iter().zip(gain) {
            row *= gain;
        }
    }
    weight
}
