//! The projection weight of keys, values or queries, searched back through biases, norms, rotations and slices of a
//! packed product.

use std::collections::HashSet;

use ndarray::Array2;

use crate::facts::{Facts, shapes};
use crate::graph::{Graph, int_attribute, is_op};
use crate::onnx::stored::Model;
use crate::onnx::{NodeProto, TensorProto, tensor_proto::DataType};

/// Largest number of elements of a weight that is read into memory: 2 GiB of f64.
const LARGEST: usize = 1 << 28;

/// The weight [E, width] of the projection that `value` is computed from, in f64.
///
/// `None` if the projection is quantized or is not a product with a stored weight; factors are then computed without
/// it.
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
            && let Some(tensor) = node
                .input
                .get(1)
                .and_then(|w| graph.initializer(graph.resolve(w)))
        {
            let weight = matrix(model, tensor, transposed)?;
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

/// A 2-D floating-point tensor in f64, transposed if `transposed`; `None` for other tensors or more than
/// 2^28 elements.
pub fn matrix(model: &Model, tensor: &TensorProto, transposed: bool) -> Option<Array2<f64>> {
    let [rows, cols] = tensor.dims.as_slice() else {
        return None;
    };
    let (rows, cols) = (usize::try_from(*rows).ok()?, usize::try_from(*cols).ok()?);
    if rows.checked_mul(cols)? > LARGEST {
        return None;
    }
    let matrix = Array2::from_shape_vec((rows, cols), numbers(model, tensor)?).ok()?;
    Some(if transposed {
        matrix.reversed_axes()
    } else {
        matrix
    })
}

/// The elements of a floating-point tensor in f64; `None` if the type is another one or the data cannot be read.
pub fn numbers(model: &Model, tensor: &TensorProto) -> Option<Vec<f64>> {
    let bytes = model.tensor_bytes(tensor).ok()?;
    Some(match DataType::try_from(tensor.data_type()).ok()? {
        DataType::Float => bytes
            .chunks_exact(4)
            .filter_map(|b| Some(f32::from_le_bytes(b.try_into().ok()?).into()))
            .collect(),
        DataType::Float16 => bytes
            .chunks_exact(2)
            .filter_map(|b| Some(half::f16::from_le_bytes(b.try_into().ok()?).into()))
            .collect(),
        DataType::Bfloat16 => bytes
            .chunks_exact(2)
            .filter_map(|b| Some(half::bf16::from_le_bytes(b.try_into().ok()?).into()))
            .collect(),
        _ => return None,
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
