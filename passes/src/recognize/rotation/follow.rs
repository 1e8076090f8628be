//! Recognition of the rotation of rows: of whole heads, or of some of their channels.
//!
//! DeepSeek's models compute the rotated channels separately: one rotated head is expanded to all heads and
//! concatenated behind the unrotated channels of each head.

use std::collections::BTreeSet;

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, int_attribute, is_contrib, is_op, label};
use crate::onnx::NodeProto;
use crate::recognize::rotation::origin::are_positions;
use crate::recognize::rotation::positions::{PositionsShape, positions};
use crate::recognize::rotation::proof;
use crate::recognize::rotation::rope::{RotatedChannels, Rotation};
use crate::recognize::rotation::rows::{MOST, RotatedRows, length_of, rows_in};
use crate::recognize::rotation::walk::{
    Through, ancestors, dependents, source, tables, works_by_position,
};

/// The rotation that makes the rows `site`, whose ancestor nodes are `behind`.
///
/// # Errors
/// The reason why the rotation is not recognised, as text for a message.
pub fn followed(
    graph: &Graph,
    facts: &Facts,
    site: &RotatedRows,
    behind: &BTreeSet<NodeId>,
) -> Result<Rotation, String> {
    let value = site.value;
    let positions = positions(graph, facts, behind)
        .ok_or("the positions that its angles follow from are not found")?;
    let moved = dependents(graph, behind, &positions.value, Through::Numbers);
    let made = graph.producer(value).map(|(id, _)| id);
    if made.is_none_or(|id| !moved.contains(&id)) {
        return Err(format!("'{}' does not reach the keys", positions.value));
    }
    let length = length_of(facts, site).ok_or("the shape of the keys is not known")?;
    let input = match source(graph, facts, site, &moved) {
        Ok(input) => input,
        Err(several) => return part(graph, facts, site, &moved).ok_or(several),
    };
    proof::one_rotation(graph, behind, &ancestors(graph, &input))?;
    let packed = rows_in(facts, site, &input) == Some(3);
    let rows = dependents(graph, behind, &input, Through::Numbers);
    let nodes: Vec<NodeId> = rows.iter().copied().collect();
    let any = dependents(graph, behind, &positions.value, Through::Shapes);
    let tables = tables(graph, &input, &rows, &any);
    if positions.shape != PositionsShape::First
        && facts.shape(&positions.value).and_then(<[_]>::last) != Some(length)
    {
        return Err(format!("'{}' is not one position a row", positions.value));
    }
    are_positions(graph, facts, &positions.value, site.past.as_ref())?;
    proof::any_number_of_rows(facts, &positions)?;
    proof::count_on(graph, &nodes, &positions)?;
    proof::count_on(graph, &tables, &positions)?;
    proof::rotate_by_position(graph, facts, &tables, &moved, length)?;
    for node in nodes.iter().filter_map(|id| graph.node(*id)) {
        if !works_by_position(facts, node, length) {
            return Err(format!(
                "{} '{}' may mix positions",
                node.op_type(),
                label(node)
            ));
        }
    }
    if nodes.len() > MOST {
        return Err("it takes too many nodes".to_owned());
    }
    let interleaved = nodes
        .iter()
        .filter_map(|id| graph.node(*id))
        .any(|n| joins_neighbours(facts, n));
    let whole = width(graph, facts, &nodes) == Some(site.size);
    Ok(Rotation {
        input,
        packed,
        interleaved,
        whole,
        nodes,
        part: None,
        positions,
        tables,
    })
}

/// The number of rotated channels of a head, from the width of the cos and sin tables.
fn width(graph: &Graph, facts: &Facts, nodes: &[NodeId]) -> Option<usize> {
    let all = || nodes.iter().filter_map(|id| graph.node(*id));
    let last = |value: &String| usize::try_from(facts.shape(value)?.last()?.as_i64()?).ok();
    if let Some(operator) = all().find(|n| n.op_type() == "RotaryEmbedding") {
        let cos = if is_contrib(operator, "RotaryEmbedding") {
            2
        } else {
            1
        };
        return Some(2 * last(operator.input.get(cos)?)?);
    }
    // With `Neg` (rotate_half) a table is as wide as the rotated channels; otherwise both halves are multiplied
    // separately and it is half as wide.
    let table = all()
        .find(|n| is_op(n, "Mul"))?
        .output
        .first()
        .and_then(last)?;
    let negates = all().any(|n| is_op(n, "Neg"));
    Some(if negates { table } else { 2 * table })
}

/// Whether `node` pairs neighbouring channels (interleaved RoPE).
fn joins_neighbours(facts: &Facts, node: &NodeProto) -> bool {
    let steps = node.input.get(4).and_then(|s| facts.integers(s));
    int_attribute(node, "interleaved", 0) != 0
        || is_op(node, "Slice") && steps.is_some_and(|s| s.contains(&2))
}

/// The rotation of `rows` if it works only on some channels, which are then concatenated with the others.
fn part(
    graph: &Graph,
    facts: &Facts,
    rows: &RotatedRows,
    moved: &BTreeSet<NodeId>,
) -> Option<Rotation> {
    let (concat, node) = graph.producer(rows.value)?;
    if !is_op(node, "Concat") || !matches!(int_attribute(node, "axis", 0), -1 | 3) {
        return None;
    }
    let size_of = |value: &str| usize::try_from(facts.shape(value)?.get(3)?.as_i64()?).ok();
    let is_moved = |value: &String| {
        let made = graph.producer(value);
        made.is_some_and(|(id, _)| moved.contains(&id))
    };
    let at = node.input.iter().position(is_moved)?;
    let (before, after) = (node.input.get(..at)?, node.input.get(at + 1..)?);
    if after.iter().any(is_moved) {
        return None;
    }
    let first = before.iter().map(|v| size_of(v)).sum::<Option<usize>>()?;
    let mut rotated = node.input.get(at)?;
    let (mut heads, mut join) = (rows.heads, vec![concat]);
    if let Some((id, expand)) = graph.producer(rotated).filter(|(_, n)| is_op(n, "Expand")) {
        rotated = expand.input.first()?;
        // A rotation of a single head broadcasts over any number of heads.
        heads = 1;
        join.insert(0, id);
    }
    let size = size_of(rotated)?;
    let apart = RotatedRows {
        value: rotated,
        heads,
        size,
        past: rows.past.clone(),
    };
    let rotation = followed(graph, facts, &apart, &ancestors(graph, rotated)).ok()?;
    (!rotation.packed && rotation.part.is_none()).then(|| Rotation {
        part: Some(RotatedChannels {
            first,
            size,
            rotated: rotated.clone(),
            join,
        }),
        whole: false,
        ..rotation
    })
}
