//! Comparison of rotations: branches that share a cache of unrotated keys must rotate them in the same way.

use crate::facts::Facts;
use crate::graph::{Graph, is_alias, is_op};
use crate::onnx::NodeProto;
use crate::recognize::rotation::{Rotated, Rotation};

/// Operators that determine what a rotation computes; others only change the layout of its operands.
const COMPUTES: [&str; 13] = [
    "Add",
    "Concat",
    "Cos",
    "Div",
    "Einsum",
    "Gather",
    "MatMul",
    "Mul",
    "Neg",
    "RotaryEmbedding",
    "Sin",
    "Slice",
    "Sub",
];

/// The operators of a rotation with their attributes and constants, as a text that is equal for equal rotations. `None`
/// if the rotation is not recognised; it is then not equal to any other.
pub fn fingerprint(graph: &Graph, facts: &Facts, rotated: &Rotated) -> Option<String> {
    let Rotation { tables, nodes, .. } = match rotated {
        Rotated::No => return Some(String::new()),
        Rotated::Unknown(_) => return None,
        Rotated::By(rotation) => rotation,
    };
    let nodes = tables.iter().chain(nodes).filter_map(|id| graph.node(*id));
    let computing = nodes.filter(|n| COMPUTES.contains(&n.op_type()) && !is_alias(n));
    // Integer values are shapes, which do not change what is computed.
    let floating = computing.filter(|n| n.output.iter().any(|o| facts.ints(o).is_none()));
    let mut lines: Vec<String> = floating.map(|n| line(graph, facts, n)).collect();
    // The order of independent nodes depends on the exporter.
    lines.sort();
    Some(lines.join("\n"))
}

/// The value that `value` is a reshaped, transposed or cast copy of.
fn arranged<'g>(graph: &Graph<'g>, value: &'g str) -> &'g str {
    let carries = [
        "Cast",
        "CastLike",
        "Expand",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ];
    let mut value = graph.resolve(value);
    while let Some((_, node)) = graph.producer(value) {
        match node.input.first() {
            Some(input) if carries.iter().any(|op| is_op(node, op)) => value = graph.resolve(input),
            _ => break,
        }
    }
    value
}

fn line<'g>(graph: &Graph<'g>, facts: &Facts, node: &'g NodeProto) -> String {
    let operand = |value: &'g String| {
        let value = arranged(graph, value);
        if let Some(numbers) = facts.floats(value) {
            return format!("{numbers:?}");
        }
        if let Some(numbers) = facts.integers(value) {
            return format!("{numbers:?}");
        }
        match graph.initializer(value) {
            Some(tensor) => tensor.name().to_owned(),
            None => "·".to_owned(),
        }
    };
    let operands: Vec<String> = node.input.iter().map(operand).collect();
    let attributes: Vec<String> = node
        .attribute
        .iter()
        .map(|a| format!("{}={} {:?} {:?}", a.name(), a.i(), a.f, a.ints))
        .collect();
    let (operands, attributes) = (operands.join(","), attributes.join(","));
    format!("{} {operands} {attributes}", node.op_type())
}
