//! Where keys are rotated by their positions, and how the same rotation is applied to other rows at other positions.
//!
//! Nothing is said of the kind of rotation: half-split or interleaved, the whole head or a part of it, scaled or not,
//! spelled out or an operator. What is proved is that the nodes between the rows before and the keys that are cached work
//! on each position by itself, so that a copy of them does to other rows what they do to these.

pub mod fingerprint;
mod numbers;
mod part;
mod positions;
mod proof;
mod walk;

use std::collections::BTreeSet;

use tract_data::prelude::TDim;

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, int_attribute, is_contrib, is_op, label};
use crate::onnx::NodeProto;
use crate::recognize::site::Site;
use part::part;
use positions::{looked_up, positions};
use walk::{Through, ancestors, dependents, source, tables, works_by_position};

pub use part::Part;
pub use positions::{Form, Positions};

/// Most nodes between the rows before the rotation and the keys.
const MOST: usize = 200;

/// The rotation of the keys of one attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The rows before it: [B, G, T, d], or [B, T, G*d] where heads are split afterwards; of `part`, where there is one.
    pub input: String,
    /// Whether `input` is [B, T, G*d].
    pub packed: bool,
    /// Whether pairs are neighbours; else a channel of the first half goes with one of the second.
    pub interleaved: bool,
    /// Whether all channels of a head are rotated, as far as the tables tell.
    pub whole: bool,
    /// The nodes that turn `input` into the cached keys, in graph order.
    pub nodes: Vec<NodeId>,
    /// The channels that `nodes` work on, where the others come from another place and join them afterwards.
    pub part: Option<Part>,
    /// The positions that the tables follow from.
    pub positions: Positions,
    /// The nodes that make the tables from the positions, in graph order.
    pub tables: Vec<NodeId>,
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
        past: past_length(facts, site),
    };
    rotation_of(graph, facts, &keys)
}

/// The rotation of the queries of `site`, with every factor between it and the score product.
pub fn query_rotation(graph: &Graph, facts: &Facts, site: &Site) -> Rotated {
    let queries = Rows {
        value: &site.query,
        heads: site.heads,
        size: site.key.size,
        past: past_length(facts, site),
    };
    rotation_of(graph, facts, &queries)
}

/// Rows [B, heads, T, size] that may be rotated.
struct Rows<'r> {
    value: &'r str,
    heads: usize,
    size: usize,
    /// P, where there is a cache.
    past: Option<TDim>,
}

/// P, the length of the key cache before this step.
fn past_length(facts: &Facts, site: &Site) -> Option<TDim> {
    let past = site.key.cache.as_ref()?.past.as_ref()?;
    facts.shape(past)?.get(2).cloned()
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
    let input = match source(graph, facts, site, &moved) {
        Ok(input) => input,
        Err(several) => return part(graph, facts, site, &moved).ok_or(several),
    };
    let packed = rows_in(facts, site, &input) == Some(3);
    let rows = dependents(graph, behind, &input, Through::Numbers);
    let nodes: Vec<NodeId> = rows.iter().copied().collect();
    let any = dependents(graph, behind, &positions.value, Through::Shapes);
    let tables = tables(graph, &input, &rows, &any);
    proof::are_positions(graph, facts, &positions.value, site.past.as_ref())?;
    proof::count_on(graph, &nodes, &positions)?;
    proof::count_on(graph, &tables, &positions)?;
    proof::turn_by_position(graph, facts, &tables, &moved)?;
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
