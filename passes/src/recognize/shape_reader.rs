//! `Shape` nodes that read a value which a rewrite removes or whose shape it changes.
//!
//! Exporters slice masks to the length of the repeated keys, so the rewritten graph must compute the same shape: each
//! size is either a constant, or the batch size or length, which the latent cache has too.

use tract_data::prelude::TDim;

use crate::facts::{Facts, shape_range};
use crate::graph::{Graph, NodeId, attribute, int_attribute, is_op, label};
use crate::recognize::reject::Reason;

/// One element of the shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Element {
    /// A constant.
    Fixed(i64),
    /// The size of this axis of the anchor: its batch or its length.
    Axis(i64),
}

/// A `Shape` node, and how to compute its output without the value that it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeReader {
    /// The `Shape` node.
    pub node: NodeId,
    /// A value of the rewritten graph with the batch on axis 0 and the length on the last axis but one.
    pub anchor: String,
    /// The elements of the output.
    pub elements: Vec<Element>,
}

/// The `Shape` nodes that read `value` and have to be replaced; `anchor` has the same batch size and length.
/// `narrowed`: the value is kept, with the sizes of its batch and length, so that readers of only these need no
/// replacement.
///
/// # Errors
/// A `Shape` node whose output cannot be computed from `anchor`, with the reason.
pub fn shape_readers(
    graph: &Graph,
    facts: &Facts,
    value: &str,
    anchor: &str,
    narrowed: bool,
) -> Result<Vec<ShapeReader>, (NodeId, Reason)> {
    let mut readers = Vec::new();
    for usage in graph.uses(value) {
        let Some(node) = graph.node(usage.node).filter(|n| is_op(n, "Shape")) else {
            continue;
        };
        let unclear = || {
            let reason = Reason::ShapeReader {
                value: value.to_owned(),
                reader: label(node).to_owned(),
            };
            (usage.node, reason)
        };
        let shape = facts.shape(value).ok_or_else(unclear)?;
        let range = shape_range(node, shape.len());
        let asked = node.output.first().map(String::as_str).unwrap_or_default();
        let length = shape.len().saturating_sub(2);
        if narrowed && looks_only_at(graph, facts, asked, length, range.clone()) {
            continue;
        }
        let kept = facts.shape(anchor).unwrap_or_default();
        let elements = shape
            .get(range)
            .unwrap_or_default()
            .iter()
            .map(|size| element(size, kept))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(unclear)?;
        readers.push(ShapeReader {
            node: usage.node,
            anchor: anchor.to_owned(),
            elements,
        });
    }
    Ok(readers)
}

fn element(size: &TDim, anchor: &[TDim]) -> Option<Element> {
    if let Some(size) = size.as_i64() {
        return Some(Element::Fixed(size));
    }
    [0, anchor.len().saturating_sub(2)]
        .into_iter()
        .find(|&axis| anchor.get(axis) == Some(size))
        .map(|axis| Element::Axis(axis as i64))
}

/// Whether all readers of the shape vector `asked`, which has the sizes of the axes `range`, pick only batch and
/// length, the axes 0 and `length`.
fn looks_only_at(
    graph: &Graph,
    facts: &Facts,
    asked: &str,
    length: usize,
    range: std::ops::Range<usize>,
) -> bool {
    let kept = |axis: usize| axis == 0 || axis == length;
    if range.clone().all(kept) {
        return true;
    }
    !graph.is_output(asked)
        && graph.uses(asked).iter().all(|usage| {
            let Some(node) = graph.node(usage.node) else {
                return false;
            };
            let picked = match (usage.input, node.op_type()) {
                (Some(0), "Gather")
                    if is_op(node, "Gather") && int_attribute(node, "axis", 0) == 0 =>
                {
                    node.input.get(1).and_then(|i| facts.integers(i))
                }
                (Some(0), "Slice")
                    if is_op(node, "Slice")
                        && attribute(node, "starts").is_none()
                        && node.input.len() == 3 =>
                {
                    let bounds = |i: usize| facts.integers(node.input.get(i)?)?.first().copied();
                    match (bounds(1), bounds(2)) {
                        (Some(start), Some(end)) if start >= 0 && end >= start => {
                            Some((start..end.min(range.len() as i64)).collect())
                        }
                        _ => None,
                    }
                }
                _ => None,
            };
            picked.is_some_and(|indices| {
                indices.iter().all(|&i| {
                    let i = if i < 0 { i + range.len() as i64 } else { i };
                    usize::try_from(i).is_ok_and(|i| kept(range.start + i))
                })
            })
        })
}
