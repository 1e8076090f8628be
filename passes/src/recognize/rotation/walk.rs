//! Walks between rotated rows, unrotated rows and positions.

use std::collections::{BTreeSet, HashSet};

use tract_data::prelude::TDim;

use crate::facts::{Facts, shapes};
use crate::graph::weight::Weight;
use crate::graph::{Graph, NodeId, attribute, int_attribute, is_alias, is_op};
use crate::onnx::NodeProto;
use crate::recognize::rotation::numbers::numbers;
use crate::recognize::rotation::rows::{MOST, RotatedRows, length_of, rows_in};

/// The nodes from which `value` is computed, back to the projections.
pub fn ancestors(graph: &Graph, value: &str) -> BTreeSet<NodeId> {
    let mut found = BTreeSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        let Some((id, node)) = graph.producer(value) else {
            continue;
        };
        if found.len() > 10 * MOST || is_projection(graph, node) || !found.insert(id) {
            continue;
        }
        // `Shape` and the second input of `CastLike` do not depend on the elements of their inputs.
        let inputs = match node.op_type() {
            "Shape" => &[],
            "CastLike" => numbers(node),
            _ => node.input.as_slice(),
        };
        open.extend(inputs.iter().map(String::as_str));
    }
    found
}

/// The kind of dependence on a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// On its elements.
    Numbers,
    /// On its elements or its shape.
    Shapes,
}

/// The nodes of `among` that depend on `value`.
pub fn dependents(
    graph: &Graph,
    among: &BTreeSet<NodeId>,
    value: &str,
    through: Through,
) -> BTreeSet<NodeId> {
    let mut reached: HashSet<&str> = HashSet::from([value]);
    let mut found = BTreeSet::new();
    // Ids are in topological order, so one pass is enough.
    for id in among {
        let Some(node) = graph.node(*id) else {
            continue;
        };
        if is_op(node, "Shape") && through == Through::Numbers {
            continue;
        }
        if node.input.iter().any(|i| reached.contains(i.as_str())) {
            found.insert(*id);
            reached.extend(node.output.iter().map(String::as_str));
        }
    }
    found
}

/// The nodes of `any` (those that depend on the positions) that the nodes of `rows` depend on and that are not in
/// `rows`.
pub fn tables(
    graph: &Graph,
    input: &str,
    rows: &BTreeSet<NodeId>,
    any: &BTreeSet<NodeId>,
) -> Vec<NodeId> {
    let inputs = |id: &NodeId| {
        graph
            .node(*id)
            .map(|n| n.input.as_slice())
            .unwrap_or_default()
    };
    let mut found = BTreeSet::new();
    let mut open: Vec<&String> = rows.iter().flat_map(inputs).collect();
    while let Some(value) = open.pop() {
        if value != input
            && let Some((id, _)) = graph.producer(value)
            && any.contains(&id)
            && !rows.contains(&id)
            && found.insert(id)
        {
            open.extend(inputs(&id));
        }
    }
    found.into_iter().collect()
}

/// Whether `node` is a projection: a product with a stored matrix. Frequencies of RoPE are a vector.
fn is_projection(graph: &Graph, node: &NodeProto) -> bool {
    let weighed = node.op_type().contains("MatMul") || node.op_type() == "Gemm";
    let weight = || {
        let tensor = Weight::of(graph, node.input.get(1)?)?.tensor;
        let size: i64 = tensor.dims.iter().product();
        // A vector of frequencies may have further axes of size one.
        let widest = tensor.dims.iter().max().copied().unwrap_or(0);
        (size > widest).then_some(())
    };
    weighed && weight().is_some()
}

/// The unrotated rows: walks back from the rotated rows to the one value that does not depend on the positions.
pub fn source(
    graph: &Graph,
    facts: &Facts,
    site: &RotatedRows,
    moved: &BTreeSet<NodeId>,
) -> Result<String, String> {
    let length = length_of(facts, site).ok_or("the shape of the keys is not known")?;
    let mut leaves: BTreeSet<String> = BTreeSet::new();
    let mut seen = HashSet::new();
    let mut open = vec![site.value.to_owned()];
    while let Some(value) = open.pop() {
        if !seen.insert(value.clone()) {
            continue;
        }
        // Constants and cos and sin tables are not rows.
        if facts.floats(&value).is_some() || graph.initializer(graph.resolve(&value)).is_some() {
            continue;
        }
        let Some((id, node)) = graph.producer(&value) else {
            return Err(format!("'{value}' takes part in it and is made elsewhere"));
        };
        if is_table(graph, facts, &value, moved, length) {
            continue;
        }
        // The unrotated rows are the first value that does not depend on the positions and has all channels of all
        // heads. Slicing channels and concatenating them in another order is part of the rotation.
        let whole = rows_in(facts, site, &value).is_some_and(|rank| {
            let joined = is_op(node, "Concat") || is_op(node, "Reshape");
            rank == 3 || !joined
        });
        let followed = moved.contains(&id) || works_by_position(facts, node, length) && !whole;
        if followed {
            let all = node.input.len();
            let count = match node.op_type() {
                "Add" | "Sub" | "Mul" | "Div" | "Concat" => all,
                _ => 1,
            };
            open.extend(node.input.iter().take(count).cloned());
        } else {
            leaves.insert(value);
        }
    }
    let all: Vec<String> = leaves.into_iter().collect();
    match all.as_slice() {
        [one] if rows_in(facts, site, one).is_some() => Ok(one.clone()),
        several => Err(format!(
            "it works on {several:?}, which are not one set of rows"
        )),
    }
}

/// Whether `value` is a cos or sin table: computed from positions and constants only.
fn is_table(
    graph: &Graph,
    facts: &Facts,
    value: &str,
    moved: &BTreeSet<NodeId>,
    length: &TDim,
) -> bool {
    let mut open = vec![value];
    let mut seen = HashSet::new();
    let mut depends = false;
    while let Some(value) = open.pop() {
        if !seen.insert(value) || facts.floats(value).is_some() {
            continue;
        }
        let Some((id, node)) = graph.producer(value) else {
            continue;
        };
        if matches!(node.op_type(), "Cos" | "Sin") {
            depends = true;
            continue;
        }
        if is_op(node, "Gather")
            && node
                .input
                .first()
                .is_some_and(|t| graph.initializer(graph.resolve(t)).is_some())
        {
            depends = depends || moved.contains(&id);
            continue;
        }
        if is_op(node, "Shape") {
            continue;
        }
        let arranged = works_by_position(facts, node, length)
            || ["Expand", "Slice", "Reshape", "Transpose", "Concat"]
                .iter()
                .any(|op| is_op(node, op));
        if !arranged || seen.len() > MOST {
            return false;
        }
        let count = match node.op_type() {
            "Add" | "Sub" | "Mul" | "Div" | "Concat" => node.input.len(),
            _ => 1,
        };
        open.extend(node.input.iter().take(count).map(String::as_str));
    }
    depends
}

/// Whether each position of the output of `node` depends only on the same position of its input.
pub fn works_by_position(facts: &Facts, node: &NodeProto, length: &TDim) -> bool {
    if node.op_type() == "RotaryEmbedding" {
        return true;
    }
    if !matches!(node.domain(), "" | "ai.onnx") {
        return false;
    }
    match node.op_type() {
        _ if is_alias(node) => true,
        "Add" | "Sub" | "Mul" | "Div" | "Neg" | "Cast" | "Unsqueeze" | "Squeeze" => true,
        "Concat" | "Split" => {
            is_behind_positions(facts, node, int_attribute(node, "axis", 0), length)
        }
        "Slice" => {
            let axes = node.input.get(3).and_then(|a| facts.integers(a));
            let mut axes = axes.into_iter().flatten().peekable();
            axes.peek().is_some() && axes.all(|a| is_behind_positions(facts, node, a, length))
        }
        // Heads are split, or channel pairs merged: the sequence axis and all axes before it stay.
        "Reshape" => {
            let from = node.input.first().and_then(|i| facts.shape(i));
            let to = node.output.first().and_then(|o| facts.shape(o));
            from.zip(to).is_some_and(|(a, b)| {
                [1, 2].into_iter().any(|axis| {
                    a.get(axis) == Some(length)
                        && a.get(..=axis).is_some()
                        && a.get(..=axis) == b.get(..=axis)
                })
            })
        }
        // Heads and positions change places, or only axes behind the positions are permuted.
        "Transpose" => attribute(node, "perm")
            .is_some_and(|p| p.ints == [0, 2, 1, 3] || p.ints.starts_with(&[0, 1, 2])),
        _ => false,
    }
}

/// Whether axis `axis` of the first input of `node` comes after the sequence axis.
fn is_behind_positions(facts: &Facts, node: &NodeProto, axis: i64, length: &TDim) -> bool {
    let shape = node.input.first().and_then(|i| facts.shape(i));
    let shape = shape.unwrap_or_default();
    let positions = shape.iter().rposition(|size| size == length);
    let axis = shapes::axis(axis, shape.len());
    axis.zip(positions)
        .is_some_and(|(axis, positions)| axis > positions)
}
