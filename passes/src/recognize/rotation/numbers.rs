//! Which inputs of a node are data (as opposed to shapes and axes), and which values are constant.

use std::collections::HashSet;

use crate::facts::Facts;
use crate::graph::{Graph, is_op};
use crate::onnx::NodeProto;

/// Largest number of nodes in the computation of a constant.
const MOST: usize = 60;

/// The data inputs of `node`: those whose elements it computes with, not those that only provide a shape, axes or an
/// element type.
pub fn numbers(node: &NodeProto) -> &[String] {
    let count = match node.op_type() {
        "Shape" | "Size" | "ConstantOfShape" => 0,
        "CastLike" | "Expand" | "Reshape" | "Unsqueeze" | "Squeeze" | "Slice" | "Split"
        | "Tile" => 1,
        _ => node.input.len(),
    };
    node.input
        .get(..count.min(node.input.len()))
        .unwrap_or_default()
}

/// Whether the elements of `value` are the same in every run: it is computed only from constants and from initializers
/// that no caller can override.
pub fn is_constant(graph: &Graph, facts: &Facts, value: &str) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if !seen.insert(value) || facts.floats(value).is_some() || facts.integers(value).is_some() {
            continue;
        }
        let fixed =
            |value: &str| graph.initializer(value).is_some() && graph.input(value).is_none();
        let Some((_, node)) = graph.producer(value) else {
            match fixed(value) && !graph.is_own_input(value) {
                true => continue,
                false => return false,
            }
        };
        let computes = numbers(node);
        let made = is_op(node, "Constant") || !computes.is_empty();
        if !made || seen.len() > MOST {
            return false;
        }
        open.extend(computes.iter().map(String::as_str));
    }
    true
}
