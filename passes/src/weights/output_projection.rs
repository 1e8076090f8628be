//! The output projection (o_proj) of an attention.

use ndarray::Array2;

use crate::facts::Facts;
use crate::graph::weight::Weight;
use crate::graph::{Graph, attribute, int_attribute, is_op};
use crate::onnx::stored::Model;
use crate::recognize::site::Site;
use crate::weights::matrix::matrix;

/// W_O [H*dv, E] of `site` in f64: row `h*dv + i` reads element `i` of head `h`.
///
/// `None` if another operator, such as a gate, comes before it, or if the weight cannot be read.
pub fn output_projection(
    model: &Model,
    graph: &Graph,
    facts: &Facts,
    site: &Site,
) -> Option<Array2<f64>> {
    let rows = site.heads * site.value.size;
    let mut value = graph.node(site.output)?.output.first()?.as_str();
    let mut rows_are_tokens = false;
    loop {
        let mut readers = graph
            .uses(value)
            .iter()
            .filter(|u| graph.node(u.node).is_some_and(|n| !is_op(n, "Shape")));
        let (reader, None) = (readers.next()?, readers.next()) else {
            return None;
        };
        let node = graph.node(reader.node)?;
        let last = || facts.shape(node.output.first()?)?.last()?.as_i64();
        match node.op_type() {
            "Transpose" if attribute(node, "perm")?.ints == [0, 2, 1, 3] => rows_are_tokens = true,
            "Reshape" | "Squeeze" | "Unsqueeze" if rows_are_tokens => {
                let width = last()?;
                if width != rows as i64 && width != site.value.size as i64 {
                    return None;
                }
            }
            "Cast" | "Identity" => {}
            "MatMul" | "Gemm" if rows_are_tokens && reader.input == Some(0) => {
                if int_attribute(node, "transA", 0) != 0 {
                    return None;
                }
                let transposed = is_op(node, "Gemm") && int_attribute(node, "transB", 0) != 0;
                let weight = Weight::of(graph, node.input.get(1)?)?;
                return matrix(model, &weight, transposed).filter(|w| w.nrows() == rows);
            }
            _ => return None,
        }
        value = node.output.first()?;
    }
}
