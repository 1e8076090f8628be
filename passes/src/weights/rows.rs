//! Rows that are nothing but a projection of the layer's input, so that another projection can make something else.

use ndarray::{Array1, Array2};

use crate::facts::Facts;
use crate::graph::{Graph, attribute, is_alias, is_op};
use crate::onnx::stored::Model;
use crate::weights::projection::{matrix, numbers};

/// x W + b, where x [B, T, E] is a value of the graph.
#[derive(Debug, Clone)]
pub struct Projected {
    /// x.
    pub input: String,
    /// W [E, width].
    pub weight: Array2<f64>,
    /// b, where there is one.
    pub bias: Option<Array1<f64>>,
    /// ONNX element type of W.
    pub elem_type: i32,
}

/// What makes `rows`, [B, G, T, d] or [B, T, width], where between the product and them heads are split and nothing else.
/// `None` where the projection is quantized or makes more than these rows, or where they are normalized.
pub fn projected(
    model: &Model,
    graph: &Graph,
    facts: &Facts,
    rows: &str,
    width: usize,
) -> Option<Projected> {
    let mut value = rows;
    let mut bias = None;
    // Split heads are transposed last, so that elements lie as the product made them.
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
                let tensor = graph.initializer(graph.resolve(node.input.get(1)?))?;
                let weight = matrix(model, tensor, false).filter(|w| w.ncols() == width)?;
                let shape = facts.shape(first)?;
                // A graph that contradicts itself is nobody's projection.
                let rows = shape.last()?.as_i64();
                let fits = rows.is_none_or(|rows| rows == weight.nrows() as i64);
                let three = shape.len() == 3 && fits;
                return three.then(|| Projected {
                    input: first.clone(),
                    weight,
                    bias,
                    elem_type: tensor.data_type(),
                });
            }
            _ => return None,
        };
    }
}
