//! Proves that RoPE rotates each row by its own position, so that the same nodes rotate cached rows at theirs.
//!
//! Two things must hold. The positions are those of the graph: its position input, `cumsum(mask) - 1`, or `0..T` behind
//! the length of the past. And each angle is its position times one frequency that is constant, or cos and sin are looked
//! up in a constant table by the position itself.

use std::collections::BTreeSet;

use tract_data::prelude::TDim;

use crate::facts::{Facts, shapes};
use crate::graph::{Graph, NodeId, attribute, int_attribute, is_alias, is_contrib, is_op, label};
use crate::onnx::NodeProto;
use crate::recognize::rotation::numbers::{is_constant, numbers};
use crate::recognize::rotation::positions::{Positions, PositionsShape};

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
    length: &TDim,
) -> Result<(), String> {
    let proof = Tables {
        graph,
        facts,
        moved,
        length,
    };
    let all = tables.iter().filter(|id| moved.contains(id));
    let mut nodes = all.filter_map(|id| graph.node(*id));
    match nodes.find(|node| !proof.keeps_positions_apart(node)) {
        Some(node) => Err(format!(
            "{} '{}' does more to the positions than to multiply them with frequencies",
            node.op_type(),
            label(node)
        )),
        None => Ok(()),
    }
}

/// The nodes between the positions and the rows.
struct Tables<'t> {
    graph: &'t Graph<'t>,
    facts: &'t Facts,
    /// Those that the numbers of the positions reach.
    moved: &'t BTreeSet<NodeId>,
    /// T.
    length: &'t TDim,
}

impl Tables<'_> {
    fn keeps_positions_apart(&self, node: &NodeProto) -> bool {
        let constant = |value: &String| is_constant(self.graph, self.facts, value);
        let first = node.input.first();
        match node.op_type() {
            _ if is_alias(node) => true,
            "Unsqueeze" | "Squeeze" | "Cast" | "CastLike" | "Cos" | "Sin" | "Expand"
            | "Reshape" | "Transpose" | "Neg" => true,
            "Mul" | "Div" => self.scales(node),
            "MatMul" => self.scales(node) && self.is_outer_product(node),
            "Einsum" => self.scales(node) && sums_nothing(node),
            "Concat" => {
                let axis = int_attribute(node, "axis", 0);
                let known = |v: &String| self.is_moved(v) || constant(v);
                node.input.iter().all(known) && first.is_some_and(|v| self.is_of_pairs(v, axis))
            }
            "Split" => {
                let axis = int_attribute(node, "axis", 0);
                first.is_some_and(|v| self.is_of_pairs(v, axis))
            }
            "Slice" => {
                let axes = node.input.get(3).and_then(|a| self.facts.integers(a));
                let of_pairs = |axes: Vec<i64>| {
                    let mut axes = axes.into_iter();
                    axes.all(|axis| first.is_some_and(|v| self.is_of_pairs(v, axis)))
                };
                axes.is_some_and(of_pairs)
            }
            "Gather" => first.is_some_and(constant) && int_attribute(node, "axis", 0) == 0,
            _ => false,
        }
    }

    fn is_moved(&self, value: &str) -> bool {
        let made = self.graph.producer(value);
        made.is_some_and(|(id, _)| self.moved.contains(&id))
    }

    /// Whether `node` multiplies with one constant that is the same at every position: it has one element on each axis
    /// whose size is not that of pairs.
    fn scales(&self, node: &NodeProto) -> bool {
        let constant = |v: &&String| is_constant(self.graph, self.facts, v);
        let (constants, others): (Vec<&String>, Vec<&String>) =
            numbers(node).iter().partition(constant);
        let ([constant], [other]) = (constants.as_slice(), others.as_slice()) else {
            return false;
        };
        if node.op_type() == "MatMul" || node.op_type() == "Einsum" {
            return true;
        }
        let shapes = (self.facts.shape(constant), self.facts.shape(other));
        let (Some(sizes), Some(shape)) = shapes else {
            return false;
        };
        let aligned = sizes.iter().rev().zip(shape.iter().rev());
        sizes.len() <= shape.len()
            && aligned
                .into_iter()
                .all(|(size, of)| *size == TDim::Val(1) || self.is_size_of_pairs(of))
    }

    /// Whether axis `axis` of `value` holds pairs of channels, and not positions.
    fn is_of_pairs(&self, value: &str, axis: i64) -> bool {
        let shape = self.facts.shape(value).unwrap_or_default();
        let axis = shapes::axis(axis, shape.len());
        axis.and_then(|axis| shape.get(axis))
            .is_some_and(|size| self.is_size_of_pairs(size))
    }

    fn is_size_of_pairs(&self, size: &TDim) -> bool {
        size.as_i64().is_some() && size != self.length
    }

    /// Whether the axis that `node` sums over has one element.
    fn is_outer_product(&self, node: &NodeProto) -> bool {
        let size = |position: usize, from_last: usize| {
            let shape = self.facts.shape(node.input.get(position)?)?;
            shape.get(shape.len().checked_sub(from_last)?)?.as_i64()
        };
        size(0, 1) == Some(1) || size(1, 2) == Some(1)
    }
}

/// Whether every axis of the operands of `node`, an `Einsum`, is an axis of its output.
fn sums_nothing(node: &NodeProto) -> bool {
    let equation = attribute(node, "equation").map(|a| String::from_utf8_lossy(a.s()).into_owned());
    let equation = equation.unwrap_or_default();
    let Some((operands, output)) = equation.split_once("->") else {
        return false;
    };
    let mut axes = operands.chars().filter(|c| c.is_alphabetic());
    axes.all(|axis| output.contains(axis))
}
