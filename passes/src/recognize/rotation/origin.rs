//! Proof of the origin of positions: the position input of the graph, `cumsum(mask) - 1`, or `P + (0..T)` with the past
//! length P.

use tract_data::prelude::TDim;

use crate::facts::Facts;
use crate::graph::{Graph, int_attribute, is_alias, is_op, label};
use crate::onnx::{NodeProto, tensor_proto::DataType};

/// Largest number of nodes between an operand of the rotation and the origin of the positions.
const FARTHEST: usize = 40;

/// Proves that `value` holds the position of each new row; `past` is the past length P.
///
/// # Errors
/// The value or node that is not known to compute positions, as text for a message.
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
        value = match node.op_type() {
            _ if carries(node) => first,
            "Range" if counts_from(facts, node, past) => return Ok(()),
            // The slice of the last T of all positions; then replacements of the positions of padding, which the mask
            // hides.
            "Slice" if is_op(node, "Slice") && takes_the_last(facts, node, value) => first,
            "Max" | "Clip" if node.input.len() == 2 && is(facts, input(1), 0) => first,
            "Where" if is_padding(graph, facts, first) => input(2),
            "Sub" if is(facts, input(1), 1) && counts_tokens(graph, facts, first) => return Ok(()),
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

fn is(facts: &Facts, value: &str, number: i64) -> bool {
    facts.integers(value).is_some_and(|v| v == [number])
}

/// Whether `node` only changes the shape of positions, or their type to one that represents them exactly.
fn carries(node: &NodeProto) -> bool {
    let wide = [
        DataType::Int32,
        DataType::Int64,
        DataType::Float,
        DataType::Double,
    ];
    let to = int_attribute(node, "to", 0);
    let shapes = ["Unsqueeze", "Squeeze", "Reshape", "Expand"];
    is_alias(node)
        || shapes.iter().any(|op| is_op(node, op))
        || is_op(node, "Cast") && wide.iter().any(|t| i64::from(*t as i32) == to)
}

/// Whether `value` is a mask input of the graph, possibly cast to another type.
fn is_mask(graph: &Graph, value: &str) -> bool {
    let mut value = value;
    while let Some((_, node)) = graph.producer(value) {
        match node.input.first() {
            Some(input) if is_op(node, "Cast") || is_alias(node) => value = input,
            _ => return false,
        }
    }
    graph
        .input(value)
        .is_some_and(|i| i.name().contains("mask"))
}

/// Whether the condition `value` is true where the mask is zero.
fn is_padding(graph: &Graph, facts: &Facts, value: &str) -> bool {
    let Some((_, node)) = graph.producer(value) else {
        return false;
    };
    match (node.op_type(), node.input.as_slice()) {
        ("Not", [mask]) => is_mask(graph, mask),
        ("Equal", [mask, zero]) => is_mask(graph, mask) && is(facts, zero, 0),
        (_, [inner, ..]) if is_alias(node) || is_op(node, "Cast") => {
            is_padding(graph, facts, inner)
        }
        _ => false,
    }
}

/// Whether `value` is `cumsum(mask)` along the sequence axis of a mask input of the graph.
fn counts_tokens(graph: &Graph, facts: &Facts, value: &str) -> bool {
    let Some((_, node)) = graph.producer(value) else {
        return false;
    };
    let along = node.input.get(1).and_then(|a| facts.integers(a));
    let rank = facts.shape(value).map(<[TDim]>::len);
    let last = along.is_some_and(|a| a == [1] || a == [-1]) && rank == Some(2);
    let plain = int_attribute(node, "exclusive", 0) == 0 && int_attribute(node, "reverse", 0) == 0;
    let mask = node.input.first().is_some_and(|m| is_mask(graph, m));
    is_op(node, "CumSum") && last && plain && mask
}

/// Whether `node` is a `Range` that counts from `past` in steps of one.
fn counts_from(facts: &Facts, node: &NodeProto, past: &TDim) -> bool {
    let at = |position: usize| facts.ints(node.input.get(position)?);
    is_op(node, "Range")
        && at(0).is_some_and(|start| start == [past.clone()])
        && at(2).is_some_and(|step| step == [TDim::Val(1)])
}

/// Checks that `value`, to which `node` adds the past length, counts from zero.
fn starts_at_zero(
    graph: &Graph,
    facts: &Facts,
    node: &NodeProto,
    value: &str,
) -> Result<(), String> {
    let mut value = value;
    for _ in 0..FARTHEST {
        // A single element is the position of the first row.
        if facts.integers(value).is_some_and(|v| v == [0]) {
            return Ok(());
        }
        let Some((_, maker)) = graph.producer(value) else {
            break;
        };
        if counts_from(facts, maker, &TDim::Val(0)) {
            return Ok(());
        }
        match maker.input.first() {
            Some(input) if carries(maker) => value = input,
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
