//! Proof that RoPE rotates each row by its own position, so that a copy of the nodes can rotate cached rows by theirs.
//!
//! Two conditions: the positions are the position input of the graph, `cumsum(mask) - 1` or `P + (0..T)` with the past
//! length P; and each angle is its position times a constant frequency, or cos and sin are looked up in a constant
//! table by position.

use std::collections::BTreeSet;

use tract_data::prelude::TDim;

use crate::facts::{Facts, shapes};
use crate::graph::{Graph, NodeId, attribute, int_attribute, is_alias, is_contrib, is_op, label};
use crate::onnx::NodeProto;
use crate::recognize::rotation::numbers::{is_constant, numbers};
use crate::recognize::rotation::positions::{Positions, PositionsShape};

/// Refuses rotations whose tables an `If` chooses. LongRoPE switches tables by the current length, so that the cached
/// rows from before the switch have been rotated by the other table.
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

/// Proves that the rows of a batch cannot pass for channels: their number is not fixed, so that no axis of the batch has the
/// size of an axis of frequencies.
///
/// # Errors
/// The positions with their fixed number of rows.
pub fn any_number_of_rows(facts: &Facts, positions: &Positions) -> Result<(), String> {
    let rows = match positions.shape {
        PositionsShape::Rows => facts.shape(&positions.value).and_then(<[TDim]>::first),
        _ => None,
    };
    match rows.and_then(TDim::as_i64) {
        Some(rows) if rows > 1 => Err(format!(
            "'{}' has {rows} rows, which could be taken for frequencies",
            positions.value
        )),
        _ => Ok(()),
    }
}

/// Proves that, if `positions` has one element, the nodes that read it take it as the position of the first row and
/// count on from there.
///
/// # Errors
/// The node that gives all rows the same position.
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

/// Proves that the nodes of `tables` that depend on the positions (`moved`) compute angles, cosines and sines of each
/// position independently. `length` is T.
///
/// # Errors
/// The first node that does not.
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

/// The nodes that compute cos and sin tables from positions.
struct Tables<'t> {
    graph: &'t Graph<'t>,
    facts: &'t Facts,
    /// The nodes that depend on the elements of the positions.
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

    /// Whether `node` multiplies by a constant that is the same at every position: the constant has size one on all
    /// axes except that of channel pairs.
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

    /// Whether axis `axis` of `value` is that of channel pairs, not of positions.
    fn is_of_pairs(&self, value: &str, axis: i64) -> bool {
        let shape = self.facts.shape(value).unwrap_or_default();
        let axis = shapes::axis(axis, shape.len());
        axis.and_then(|axis| shape.get(axis))
            .is_some_and(|size| self.is_size_of_pairs(size))
    }

    fn is_size_of_pairs(&self, size: &TDim) -> bool {
        size.as_i64().is_some() && size != self.length
    }

    /// Whether the axis over which `node` sums has size one.
    fn is_outer_product(&self, node: &NodeProto) -> bool {
        let size = |position: usize, from_last: usize| {
            let shape = self.facts.shape(node.input.get(position)?)?;
            shape.get(shape.len().checked_sub(from_last)?)?.as_i64()
        };
        size(0, 1) == Some(1) || size(1, 2) == Some(1)
    }
}

/// Whether `node`, an `Einsum`, sums over no axis.
fn sums_nothing(node: &NodeProto) -> bool {
    let equation = attribute(node, "equation").map(|a| String::from_utf8_lossy(a.s()).into_owned());
    let equation = equation.unwrap_or_default();
    let Some((operands, output)) = equation.split_once("->") else {
        return false;
    };
    let mut axes = operands.chars().filter(|c| c.is_alphabetic());
    axes.all(|axis| output.contains(axis))
}
