//! Where keys are rotated by their positions, and how the same rotation is applied to other rows at other positions.
//!
//! Nothing is said of the kind of rotation: half-split or interleaved, the whole head or a part of it, scaled or not,
//! spelled out or an operator. What is proved is that the nodes between the rows before and the keys that are cached work
//! on each position by itself, so that a copy of them does to other rows what they do to these.

use std::collections::{BTreeSet, HashSet};

use tract_data::prelude::TDim;

use super::site::Site;
use crate::facts::Facts;
use crate::graph::{Graph, NodeId, input_at, int_attribute, is_contrib, is_op, label};
use crate::onnx::{NodeProto, tensor_proto::DataType};

/// Most nodes between the rows before the rotation and the keys.
const MOST: usize = 200;

/// The rotation of the keys of one attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The rows before it: [B, G, T, d], or [B, T, G*d] where heads are split afterwards.
    pub input: String,
    /// Whether `input` is [B, T, G*d].
    pub packed: bool,
    /// Whether pairs are neighbours; else a channel of the first half goes with one of the second.
    pub interleaved: bool,
    /// Whether all channels of a head are rotated, as far as the tables tell.
    pub whole: bool,
    /// The nodes that turn `input` into the cached keys, in graph order.
    pub nodes: Vec<NodeId>,
    /// The positions that the tables follow from.
    pub positions: Positions,
    /// The nodes that make the tables from the positions, in graph order.
    pub tables: Vec<NodeId>,
}

/// Positions of the new rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// The value.
    pub value: String,
    /// What it holds.
    pub form: Form,
}

/// Forms in which positions come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// [B, T].
    Rows,
    /// [1, T].
    OneRow,
    /// [T].
    Vector,
    /// [1]: the position of the first row; the others follow.
    First,
}

/// What is known of the rotation of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotated {
    /// They are not rotated.
    No,
    /// As said.
    By(Rotation),
    /// They are, in a way that is not followed: what is missing, in words.
    Unknown(String),
}

/// The rotation in front of the cached keys of `site`.
pub fn rotation(graph: &Graph, facts: &Facts, site: &Site) -> Rotated {
    let keys = Rows {
        value: &site.key.new,
        heads: site.kv_heads,
        size: site.key.size,
    };
    rotation_of(graph, facts, &keys)
}

/// The rotation of the queries of `site`, with every factor between it and the score product.
pub fn query_rotation(graph: &Graph, facts: &Facts, site: &Site) -> Rotated {
    let queries = Rows {
        value: &site.query,
        heads: site.heads,
        size: site.key.size,
    };
    rotation_of(graph, facts, &queries)
}

/// Rows [B, heads, T, size] that may be rotated.
struct Rows<'r> {
    value: &'r str,
    heads: usize,
    size: usize,
}

fn rotation_of(graph: &Graph, facts: &Facts, site: &Rows) -> Rotated {
    let behind = ancestors(graph, site.value);
    let turns = |id: &NodeId| {
        let node = graph.node(*id);
        node.is_some_and(|n| matches!(n.op_type(), "Cos" | "Sin" | "RotaryEmbedding"))
    };
    match followed(graph, facts, site, &behind) {
        Ok(rotation) => Rotated::By(rotation),
        Err(missing) if behind.iter().any(turns) || looked_up(graph, facts, &behind).is_some() => {
            Rotated::Unknown(missing)
        }
        Err(_) => Rotated::No,
    }
}

/// T.
fn length_of<'f>(facts: &'f Facts, site: &Rows) -> Option<&'f TDim> {
    facts.shape(site.value)?.get(2)
}

/// How many axes the rows of `site` have in `value`: 4 for [B, G, T, d], 3 for [B, T, G*d], nothing for other values.
fn rows_in(facts: &Facts, site: &Rows, value: &str) -> Option<usize> {
    let (heads, size) = (site.heads as i64, site.size as i64);
    match facts.shape(value)? {
        [_, h, _, d] if h.as_i64() == Some(heads) && d.as_i64() == Some(size) => Some(4),
        [_, _, x] if x.as_i64() == Some(heads * size) => Some(3),
        _ => None,
    }
}

fn followed(
    graph: &Graph,
    facts: &Facts,
    site: &Rows,
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
    let input = source(graph, facts, site, &moved)?;
    let packed = rows_in(facts, site, &input) == Some(3);
    let rows = dependents(graph, behind, &input, Through::Numbers);
    let nodes: Vec<NodeId> = rows.iter().copied().collect();
    let any = dependents(graph, behind, &positions.value, Through::Shapes);
    let tables = tables(graph, &input, &rows, &any);
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
        positions,
        tables,
    })
}

/// How many channels of a head are rotated, from the width of the tables.
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
    // Half of the channels is negated and set in front of the other half, or both halves are multiplied apart.
    let table = all()
        .find(|n| is_op(n, "Mul"))?
        .output
        .first()
        .and_then(last)?;
    let negates = all().any(|n| is_op(n, "Neg"));
    Some(if negates { table } else { 2 * table })
}

/// Whether `node` works on every second channel.
fn joins_neighbours(facts: &Facts, node: &NodeProto) -> bool {
    let steps = node.input.get(4).and_then(|s| facts.integers(s));
    int_attribute(node, "interleaved", 0) != 0
        || is_op(node, "Slice") && steps.is_some_and(|s| s.contains(&2))
}

/// The nodes that `value` is made by, as far as the rotation can reach.
fn ancestors(graph: &Graph, value: &str) -> BTreeSet<NodeId> {
    let mut found = BTreeSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        let Some((id, node)) = graph.producer(value) else {
            continue;
        };
        if found.len() > 10 * MOST || is_projection(graph, node) || !found.insert(id) {
            continue;
        }
        // A shape is no number of what it is taken from.
        if !is_op(node, "Shape") {
            open.extend(node.input.iter().map(String::as_str));
        }
    }
    found
}

/// What counts as depending on a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    /// Its numbers.
    Numbers,
    /// Its numbers or its shape.
    Shapes,
}

/// Those of `among` that `value` reaches.
fn dependents(
    graph: &Graph,
    among: &BTreeSet<NodeId>,
    value: &str,
    through: Through,
) -> BTreeSet<NodeId> {
    let mut reached: HashSet<&str> = HashSet::from([value]);
    let mut found = BTreeSet::new();
    // Ids rise along the graph's order, so one pass is enough.
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

/// The nodes among `any`, those that follow from the positions, that the nodes of `rows` need and that are none of them.
fn tables(
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

/// A product with a weight whose other operand is not a frequency: the projection that makes the rows.
fn is_projection(graph: &Graph, node: &NodeProto) -> bool {
    let weighed = node.op_type().contains("MatMul") || node.op_type() == "Gemm";
    let weight = || {
        let tensor = graph.initializer(graph.resolve(node.input.get(1)?))?;
        let size: i64 = tensor.dims.iter().product();
        // Frequencies are a vector, whatever its rank.
        let widest = tensor.dims.iter().max().copied().unwrap_or(0);
        (size > widest).then_some(())
    };
    weighed && weight().is_some()
}

/// The integers that the angles are computed from.
fn positions(graph: &Graph, facts: &Facts, among: &BTreeSet<NodeId>) -> Option<Positions> {
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
        let turn = nodes().find(|n| is_op(n, "Cos"))?;
        integers_behind(graph, facts, turn.input.first()?)
    };
    let value = given
        .or_else(|| looked_up(graph, facts, among))
        .or_else(angles)?;
    let value = earliest(graph, facts, value);
    let one = |d: Option<i64>| d == Some(1);
    let form = match facts.shape(value)? {
        [first] if one(first.as_i64()) => Form::First,
        [_] => Form::Vector,
        [rows, _] if one(rows.as_i64()) => Form::OneRow,
        [_, _] => Form::Rows,
        _ => return None,
    };
    Some(Positions {
        value: value.to_owned(),
        form,
    })
}

/// The ids by which rows of a constant table are picked.
fn looked_up<'g>(graph: &Graph<'g>, facts: &Facts, among: &BTreeSet<NodeId>) -> Option<&'g str> {
    among.iter().filter_map(|id| graph.node(*id)).find_map(|n| {
        let table = graph.initializer(graph.resolve(n.input.first()?))?;
        let index = n.input.get(1)?;
        let ids = facts.elem_type(index) == Some(DataType::Int64 as i32);
        let float = table.data_type() != DataType::Int64 as i32;
        (is_op(n, "Gather") && float && ids && facts.integers(index).is_none())
            .then_some(index.as_str())
    })
}

/// The first integer value behind `value`.
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
            // A shape, not the numbers, is what comes in second here.
            let inputs = match node.op_type() {
                "Expand" | "Reshape" | "Unsqueeze" => node.input.get(..1),
                _ => node.input.get(..),
            };
            open.extend(inputs.unwrap_or_default().iter().map(String::as_str));
        }
    }
    None
}

/// `value` before axes were added to it.
fn earliest<'g>(graph: &Graph<'g>, facts: &Facts, value: &'g str) -> &'g str {
    let mut value = value;
    while let Some((_, node)) = graph.producer(value) {
        let carries = ["Unsqueeze", "Identity", "Cast", "Expand", "Reshape"];
        let Some(input) = node.input.first() else {
            break;
        };
        let rank = facts.shape(input).map_or(0, <[_]>::len);
        let integer = facts.elem_type(input) == Some(DataType::Int64 as i32);
        // Two axes are enough to tell positions; fewer only where nothing is lost.
        let enough = facts.shape(value).is_some_and(|s| s.len() <= 2);
        if enough || !carries.iter().any(|op| is_op(node, op)) || rank == 0 || !integer {
            break;
        }
        value = input;
    }
    value
}

/// The one value that all rows of the rotated part come from: walks back from what is rotated to what is not.
fn source(
    graph: &Graph,
    facts: &Facts,
    site: &Rows,
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
        // Constants, and tables made of positions alone, are no rows.
        if facts.floats(&value).is_some() || graph.initializer(graph.resolve(&value)).is_some() {
            continue;
        }
        let Some((id, node)) = graph.producer(&value) else {
            return Err(format!("'{value}' takes part in it and is made elsewhere"));
        };
        if is_table(graph, facts, &value, moved, length) {
            continue;
        }
        // The first value that is not rotated and has all channels of all heads is where the rows begin. Channels that
        // were cut out and put together again in another order are part of the rotation.
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

/// Whether `value` is made of positions and constants alone.
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

/// Whether `node` computes what it gives for a position from that position's elements alone.
fn works_by_position(facts: &Facts, node: &NodeProto, length: &TDim) -> bool {
    if node.op_type() == "RotaryEmbedding" {
        return true;
    }
    if !matches!(node.domain(), "" | "ai.onnx") {
        return false;
    }
    match node.op_type() {
        "Add" | "Sub" | "Mul" | "Div" | "Neg" | "Cast" | "Identity" | "Unsqueeze" | "Squeeze" => {
            true
        }
        // Along the last axes only: the first three are batch, heads and positions.
        "Concat" | "Split" => {
            let axis = int_attribute(node, "axis", 0);
            let rank = node
                .input
                .first()
                .and_then(|i| facts.shape(i))
                .map(<[_]>::len);
            rank.is_some_and(|rank| axis >= 3 || axis < 0 && rank as i64 + axis >= 3) || axis == -1
        }
        "Slice" => {
            let axes = node.input.get(3).and_then(|a| facts.integers(a));
            let rank = node
                .input
                .first()
                .and_then(|i| facts.shape(i))
                .map(<[_]>::len);
            axes.zip(rank).is_some_and(|(axes, rank)| {
                axes.iter()
                    .all(|&a| a >= 3 || a == -1 || a < 0 && rank as i64 + a >= 3)
            })
        }
        // Heads are split and turned, or pairs are joined: the axis of positions and all in front of it stay.
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
        "Transpose" => {
            crate::graph::attribute(node, "perm").is_some_and(|p| p.ints == [0, 2, 1, 3])
        }
        _ => false,
    }
}
