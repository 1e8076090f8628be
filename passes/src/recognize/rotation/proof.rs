//! Proves that RoPE rotates each row by its own position, so that the same nodes rotate cached rows at theirs.
//!
//! Two things must hold. The positions are those of the graph: its position input, `cumsum(mask) - 1`, or `0..T` behind
//! the length of the past. And each angle is its position times one frequency that is constant, or cos and sin are looked
//! up in a constant table by the position itself.

use std::collections::BTreeSet;

use tract_data::prelude::TDim;

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, int_attribute, is_alias, is_contrib, is_op, label};
use crate::onnx::NodeProto;
use crate::recognize::rotation::numbers::{is_constant, numbers};
use crate::recognize::rotation::positions::{Positions, PositionsShape};

/// Most nodes between an operand of the rotation and the positions.
const FARTHEST: usize = 40;

/// Every row is rotated by the tables that it was rotated by when it was new. LongRoPE chooses between two by the length so far
/// with an `If`: rows from before the change were rotated by the other one.
pub fn one_rotation(
    graph: &Graph,
    behind: &BTreeSet<NodeId>,
    behind_rows: &BTreeSet<NodeId>,
) -> Result<(), String> {
    let mut of_angles = behind.difference(behind_rows);
    let chosen = of_angles.find_map(|id| graph.node(*id).filter(|n| is_op(n, "If")));
    match chosen {
        Some(node) => Err(format!(
            "If '{}' chooses between tables of angles, so that the rows of one cache may be rotated by two of them",
            label(node)
        )),
        None => Ok(()),
    }
}

/// Proves that `value` holds the position of each new row, where `past` is the length of the cache before this step.
///
/// # Errors
/// What it is instead, with the node.
pub fn are_positions(
    graph: &Graph,
    facts: &Facts,
    value: &str,
    past: Option<&TDim>,
) -> Result<(), String> {
    let zero = TDim::Val(0);
    let past = past.unwrap_or(&zero);
    let mut value = value;
    for _ in 0..FARTHEST {
        if facts
            .ints(value)
            .is_some_and(|known| known == [past.clone()])
        {
            return Ok(());
        }
        let Some((_, node)) = graph.producer(value) else {
            let named = value.to_lowercase().contains("position");
            return match graph.input(value) {
                Some(_) if named => Ok(()),
                _ => Err(format!("'{value}' is not known to hold positions")),
            };
        };
        let first = node.input.first().map_or("", String::as_str);
        let input = |at: usize| node.input.get(at).map_or("", String::as_str);
        let carries = ["Unsqueeze", "Squeeze", "Reshape", "Cast", "Expand"];
        value = match node.op_type() {
            _ if is_alias(node) || carries.iter().any(|op| is_op(node, op)) => first,
            "Range" if counts_from(facts, node, past) => return Ok(()),
            // The last T of all positions, and padding that is given some position: a mask hides it.
            "Slice" if is_op(node, "Slice") && takes_the_last(facts, node, value) => first,
            "Max" | "Clip" if facts.integers(input(1)).is_some_and(|v| v == [0]) => first,
            "Where" if facts.integers(input(1)).is_some_and(|v| v.len() == 1) => input(2),
            "Sub" if is_one(facts, input(1)) && counts_tokens(graph, facts, first) => return Ok(()),
            "Add" => match (facts.ints(first), facts.ints(input(1))) {
                (Some(known), _) if known == [past.clone()] => {
                    return starts_at_zero(graph, facts, node, input(1));
                }
                (_, Some(known)) if known == [past.clone()] => {
                    return starts_at_zero(graph, facts, node, first);
                }
                _ => return Err(edited(node)),
            },
            _ => return Err(edited(node)),
        };
    }
    Err(format!("'{value}' is too far from the positions"))
}

fn edited(node: &NodeProto) -> String {
    format!(
        "{} '{}' makes the positions from something else than the position input, the mask or the length of the past",
        node.op_type(),
        label(node)
    )
}

fn is_one(facts: &Facts, value: &str) -> bool {
    facts.integers(value).is_some_and(|v| v == [1])
}

/// Whether `value` is `cumsum(mask)` along the sequence axis, of a mask that is an input of the graph.
fn counts_tokens(graph: &Graph, facts: &Facts, value: &str) -> bool {
    let Some((_, node)) = graph.producer(value) else {
        return false;
    };
    let along = node.input.get(1).and_then(|a| facts.integers(a));
    let rank = facts.shape(value).map(<[TDim]>::len);
    let last = along.is_some_and(|a| a == [1] || a == [-1]) && rank == Some(2);
    let plain = int_attribute(node, "exclusive", 0) == 0 && int_attribute(node, "reverse", 0) == 0;
    let mut mask = node.input.first().map_or("", String::as_str);
    while let Some((_, cast)) = graph.producer(mask) {
        match cast.input.first() {
            Some(input) if is_op(cast, "Cast") || is_alias(cast) => mask = input,
            _ => return false,
        }
    }
    is_op(node, "CumSum")
        && last
        && plain
        && graph.input(mask).is_some_and(|i| i.name().contains("mask"))
}

/// Whether `node`, a `Range`, counts by one from `past`.
fn counts_from(facts: &Facts, node: &NodeProto, past: &TDim) -> bool {
    let at = |position: usize| facts.ints(node.input.get(position)?);
    is_op(node, "Range")
        && at(0).is_some_and(|start| start == [past.clone()])
        && at(2).is_some_and(|step| step == [TDim::Val(1)])
}

/// Whether the other summand of `node`, which adds the length of the past, counts from zero.
fn starts_at_zero(
    graph: &Graph,
    facts: &Facts,
    node: &NodeProto,
    value: &str,
) -> Result<(), String> {
    let mut value = value;
    for _ in 0..FARTHEST {
        // One element is the position of the first row.
        if facts.integers(value).is_some_and(|v| v == [0]) {
            return Ok(());
        }
        let Some((_, maker)) = graph.producer(value) else {
            break;
        };
        if counts_from(facts, maker, &TDim::Val(0)) {
            return Ok(());
        }
        let carries = ["Unsqueeze", "Squeeze", "Reshape", "Cast", "Expand"];
        match maker.input.first() {
            Some(input) if carries.iter().any(|op| is_op(maker, op)) || is_alias(maker) => {
                value = input;
            }
            _ => break,
        }
    }
    Err(edited(node))
}

/// Whether `node`, a `Slice` of [B, S] that makes `value`, takes the last elements of axis 1.
fn takes_the_last(facts: &Facts, node: &NodeProto, value: &str) -> bool {
    let at = |position: usize| facts.ints(node.input.get(position)?);
    let open_end = at(2).is_some_and(
        |end| matches!(end, [end] if end.as_i64().is_some_and(|n| n >= i64::from(i32::MAX))),
    );
    let axis =
        at(3).is_some_and(|a| matches!(a, [axis] if [Some(1), Some(-1)].contains(&axis.as_i64())));
    facts.shape(value).map(<[TDim]>::len) == Some(2) && open_end && axis
}

/// Proves that whoever reads `positions` among `nodes` takes one element for the position of the first row, where they
/// have one element.
///
/// # Errors
/// The node that gives all rows one position.
pub fn count_on(graph: &Graph, nodes: &[NodeId], positions: &Positions) -> Result<(), String> {
    let readers = nodes.iter().filter_map(|id| graph.node(*id));
    let mut readers = readers.filter(|n| n.input.contains(&positions.value));
    let same = readers.find(|n| !is_contrib(n, "RotaryEmbedding"));
    match same {
        Some(node) if positions.shape == PositionsShape::First => Err(format!(
            "{} '{}' gives all rows one position",
            node.op_type(),
            label(node)
        )),
        _ => Ok(()),
    }
}

/// Proves that the nodes of `tables`, as far as the numbers of the positions reach them (`moved`), make angles, cosines
/// and sines of each position by itself.
///
/// # Errors
/// The node that does something else.
pub fn rotate_by_position(
    graph: &Graph,
    facts: &Facts,
    tables: &[NodeId],
    moved: &BTreeSet<NodeId>,
) -> Result<(), String> {
    for id in tables.iter().filter(|id| moved.contains(id)) {
        let Some(node) = graph.node(*id) else {
            continue;
        };
        if !keeps_positions_apart(graph, facts, node, moved) {
            return Err(format!(
                "{} '{}' does more to the positions than to multiply them with frequencies",
                node.op_type(),
                label(node)
            ));
        }
    }
    Ok(())
}

fn keeps_positions_apart(
    graph: &Graph,
    facts: &Facts,
    node: &NodeProto,
    moved: &BTreeSet<NodeId>,
) -> bool {
    let is_moved = |value: &&String| {
        graph
            .producer(value)
            .is_some_and(|(id, _)| moved.contains(&id))
    };
    let constant = |value: &String| is_constant(graph, facts, value);
    // The positions themselves are made before the nodes that they reach.
    let others: Vec<&String> = numbers(node).iter().filter(|v| !is_moved(v)).collect();
    let scaled = || numbers(node).iter().filter(|v| constant(v)).count() == 1;
    match node.op_type() {
        _ if is_alias(node) => true,
        "Unsqueeze" | "Squeeze" | "Cast" | "CastLike" | "Cos" | "Sin" | "Expand" | "Reshape"
        | "Transpose" | "Slice" | "Split" | "Neg" => true,
        "Mul" | "Div" => scaled(),
        // An outer product of positions and frequencies: nothing is summed.
        "MatMul" => {
            let size = |value: &String, from_last: usize| {
                let shape = facts.shape(value)?;
                shape.get(shape.len().checked_sub(from_last)?)?.as_i64()
            };
            let first = node.input.first().and_then(|v| size(v, 1));
            let second = node.input.get(1).and_then(|v| size(v, 2));
            scaled() && (first == Some(1) || second == Some(1))
        }
        "Einsum" => scaled(),
        "Concat" => others.iter().all(|v| constant(v)) || others.is_empty(),
        "Gather" => node.input.first().is_some_and(constant) && int_attribute(node, "axis", 0) == 0,
        _ => false,
    }
}
