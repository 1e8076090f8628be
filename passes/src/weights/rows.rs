//! Rows that are a plain projection of the layer input, so that a down-projection can be folded into its weight.

use ndarray::{Array1, Array2};

use crate::facts::Facts;
use crate::graph::weight::Weight;
use crate::graph::{Graph, attribute, is_alias, is_op};
use crate::onnx::stored::Model;
use crate::weights::matrix::{matrix, numbers};

/// A projection x W + b, where x [B, T, E] is a value of the graph.
#[derive(Debug, Clone)]
pub struct Projected {
    /// The name of x.
    pub input: String,
    /// W [E, width].
    pub weight: Array2<f64>,
    /// b, if there is one.
    pub bias: Option<Array1<f64>>,
    /// ONNX element type of W.
    pub elem_type: i32,
}

/// The projection that makes `rows` [B, G, T, d] or [B, T, width], if only a split into heads comes after it. `None` if
/// the projection is quantized or packed, or if the rows are normalized.
pub fn projected(
    model: &Model,
    graph: &Graph,
    facts: &Facts,
    rows: &str,
    width: usize,
) -> Option<Projected> {
    let mut value = rows;
    let mut bias = None;
    // Only the transposition [0, 2, 1, 3] of split heads keeps the order of the product's columns.
    let mut split = facts.shape(value)?.len() == 4;
    loop {
        let (_, node) = graph.producer(value)?;
        let first = node.input.first()?;
        let flat = |value: &str| {
            let shape = facts.shape(value);
            shape.is_some_and(|s| {
                s.len() == 3 && s.last().and_then(|d| d.as_i64()) == Some(width as i64)
            })
        };
        value = match node.op_type() {
            "Transpose" if split && attribute(node, "perm")?.ints == [0, 2, 1, 3] => {
                split = false;
                first
            }
            "Reshape" if !split && flat(first) => first,
            _ if is_alias(node) => first,
            "Add" if !split && flat(value) && bias.is_none() => {
                let second = node.input.get(1)?;
                let stored = |v: &String| graph.initializer(graph.resolve(v));
                let (rest, tensor) = match (stored(first), stored(second)) {
                    (None, Some(tensor)) => (first, tensor),
                    (Some(tensor), None) => (second, tensor),
                    _ => return None,
                };
                let numbers = numbers(model, tensor)?;
                bias = Some(Array1::from(numbers)).filter(|b| b.len() == width);
                bias.as_ref()?;
                rest
            }
            "MatMul" if !split && is_op(node, "MatMul") => {
                let stored = Weight::of(graph, node.input.get(1)?);
                // A product of quantized weights would be stored in full.
                let stored = stored.filter(|w| w.scales.is_none())?;
                let weight = matrix(model, &stored, false).filter(|w| w.ncols() == width)?;
                let shape = facts.shape(first)?;
                // Refuse a weight whose rows do not fit the input.
                let rows = shape.last()?.as_i64();
                let fits = rows.is_none_or(|rows| rows == weight.nrows() as i64);
                let three = shape.len() == 3 && fits;
                return three.then(|| Projected {
                    input: first.clone(),
                    weight,
                    bias,
                    elem_type: stored.tensor.data_type(),
                });
            }
            _ => return None,
        };
    }
}
