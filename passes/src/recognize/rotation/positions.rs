//! The positions from which the angles of a rotation are computed.

use std::collections::{BTreeSet, HashSet};

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, input_at, is_contrib, is_op};
use crate::onnx::tensor_proto::DataType;
use crate::recognize::rotation::numbers::numbers;
use crate::recognize::rotation::rows::MOST;

/// Positions of the new rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// The value.
    pub value: String,
    /// Its shape.
    pub shape: PositionsShape,
}

/// The shape of a positions tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionsShape {
    /// [B, T].
    Rows,
    /// [1, T].
    OneRow,
    /// `[T]`.
    Vector,
    /// `[1]`: the position of the first row; the other rows have consecutive positions.
    First,
}

/// Finds the positions from which the nodes `among` compute angles; `None` if there are none of a known shape.
pub fn positions(graph: &Graph, facts: &Facts, among: &BTreeSet<NodeId>) -> Option<Positions> {
    let nodes = || among.iter().filter_map(|id| graph.node(*id));
    let given = nodes().find_map(|n| {
        let rotary = n.op_type() == "RotaryEmbedding";
        let at = if is_contrib(n, "RotaryEmbedding") {
            1
        } else {
            3
        };
        input_at(n, at).filter(|_| rotary)
    });
    let angles = || {
        let angle = nodes().find(|n| is_op(n, "Cos"))?;
        integers_behind(graph, facts, angle.input.first()?)
    };
    let value = given
        .or_else(|| looked_up(graph, facts, among))
        .or_else(angles)?;
    let value = earliest(graph, facts, value);
    let one = |d: Option<i64>| d == Some(1);
    let shape = match facts.shape(value)? {
        [first] if one(first.as_i64()) => PositionsShape::First,
        [_] => PositionsShape::Vector,
        [rows, _] if one(rows.as_i64()) => PositionsShape::OneRow,
        [_, _] => PositionsShape::Rows,
        _ => return None,
    };
    Some(Positions {
        value: value.to_owned(),
        shape,
    })
}

/// The indices of the first `Gather` among `among` that reads rows of a constant cos or sin table.
pub fn looked_up<'g>(
    graph: &Graph<'g>,
    facts: &Facts,
    among: &BTreeSet<NodeId>,
) -> Option<&'g str> {
    among.iter().filter_map(|id| graph.node(*id)).find_map(|n| {
        let table = graph.initializer(graph.resolve(n.input.first()?))?;
        let index = n.input.get(1)?;
        let ids = facts.elem_type(index) == Some(DataType::Int64 as i32);
        let float = table.data_type() != DataType::Int64 as i32;
        (is_op(n, "Gather") && float && ids && facts.integers(index).is_none())
            .then_some(index.as_str())
    })
}

/// The first computed integer value among the ancestors of `value`.
fn integers_behind<'g>(graph: &Graph<'g>, facts: &Facts, value: &'g str) -> Option<&'g str> {
    let mut seen = HashSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if !seen.insert(value) || seen.len() > MOST {
            continue;
        }
        let integer = facts.elem_type(value) == Some(DataType::Int64 as i32);
        if integer && facts.integers(value).is_none() && facts.shape(value)?.len() <= 4 {
            return Some(value);
        }
        if let Some((_, node)) = graph.producer(value) {
            open.extend(numbers(node).iter().map(String::as_str));
        }
    }
    None
}

/// The value that `value` is a reshaped copy of, with two axes or fewer.
fn earliest<'g>(graph: &Graph<'g>, facts: &Facts, value: &'g str) -> &'g str {
    let mut value = value;
    while let Some((_, node)) = graph.producer(value) {
        let carries = ["Unsqueeze", "Identity", "Cast", "Expand", "Reshape"];
        let Some(input) = node.input.first() else {
            break;
        };
        let rank = facts.shape(input).map_or(0, <[_]>::len);
        let integer = facts.elem_type(input) == Some(DataType::Int64 as i32);
        // Two axes are enough for positions; to go back further may lose the batch axis.
        let enough = facts.shape(value).is_some_and(|s| s.len() <= 2);
        if enough || !carries.iter().any(|op| is_op(node, op)) || rank == 0 || !integer {
            break;
        }
        value = input;
    }
    value
}
