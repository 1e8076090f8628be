//! Walk from the operand of a product back through layout operators to its source.

use crate::facts::Facts;
use crate::facts::precision::is_float;
use crate::graph::{Graph, NodeId, attribute};
use crate::onnx::NodeProto;
use crate::recognize::append::{self, Append};
use crate::recognize::digits::scalar;
use crate::recognize::reject::{Operand, Reason};

/// One layout operator, and which of its inputs it rearranges.
#[derive(Debug, Clone, Copy)]
pub struct TrailStep {
    /// The operator.
    pub node: NodeId,
    /// Position of the rearranged input.
    pub input: usize,
}

/// The path from a source to the operand of a product.
#[derive(Debug, Clone)]
pub struct Trail<'a> {
    /// The values on the path, source first, operand last; one more than `steps`.
    pub values: Vec<&'a str>,
    /// The operators between them.
    pub steps: Vec<TrailStep>,
    /// The node that makes the source, if the source is a cache with a past.
    pub append: Option<Append<'a>>,
    /// The reason why the walk ended at a multiplication that is not by a constant scalar.
    pub stopped: Option<Reason>,
}

/// Follows `operand` back through layout operators, to a cache with a past or to the last layout operator.
pub fn trail<'a>(graph: &Graph<'a>, facts: &Facts, operand: &'a str, role: Operand) -> Trail<'a> {
    let mut values = vec![operand];
    let mut steps = Vec::new();
    let mut append = None;
    let mut stopped = None;
    let mut current = operand;
    while let Some((id, node)) = graph.producer(current) {
        append = append::append(graph, facts, id, node);
        if append.is_some() {
            break;
        }
        match carried(facts, node, role) {
            Ok(Some(input)) => {
                let Some(next) = node.input.get(input) else {
                    break;
                };
                steps.push(TrailStep { node: id, input });
                values.push(next);
                current = next;
            }
            Ok(None) => break,
            Err(reason) => {
                stopped = Some(reason);
                break;
            }
        }
        if steps.len() > graph.proto().node.len() {
            break;
        }
    }
    values.reverse();
    steps.reverse();
    Trail {
        values,
        steps,
        append,
        stopped,
    }
}

/// The input that `node` only rearranges or scales; `None` if `node` is any other operator.
fn carried(facts: &Facts, node: &NodeProto, role: Operand) -> Result<Option<usize>, Reason> {
    if !matches!(node.domain(), "" | "ai.onnx") {
        return Ok(None);
    }
    match node.op_type() {
        "Identity" | "Reshape" | "Transpose" | "Unsqueeze" | "Squeeze" | "Flatten" | "Expand"
        | "Tile" | "Slice" => Ok(Some(0)),
        "Gather" => {
            // Constant indices repeat heads; computed indices look up an embedding table.
            let constant = node
                .input
                .get(1)
                .is_some_and(|i| facts.integers(i).is_some());
            Ok(constant.then_some(0))
        }
        "Cast" => {
            let to = attribute(node, "to").map_or(0, |a| a.i() as i32);
            let from = node.input.first().and_then(|i| facts.elem_type(i));
            Ok((is_float(to) && from.is_some_and(is_float)).then_some(0))
        }
        "Concat" => {
            let copies = node.input.iter().all(|i| Some(i) == node.input.first());
            Ok(copies.then_some(0))
        }
        "Mul" => scaled(facts, node, &[0, 1], role),
        "Div" => scaled(facts, node, &[0], role),
        _ => Ok(None),
    }
}

/// The input of a `Mul` or `Div` that is scaled by a constant scalar.
fn scaled(
    facts: &Facts,
    node: &NodeProto,
    sides: &[usize],
    role: Operand,
) -> Result<Option<usize>, Reason> {
    let mut reason = None;
    for &side in sides {
        let Some(other) = node.input.get(1 - side) else {
            return Ok(None);
        };
        if scalar(facts, other).is_some() {
            return Ok(Some(side));
        }
        if facts.floats(other).is_some() {
            reason = Some(Reason::ScaleVaries {
                operand: role,
                scale: other.clone(),
            });
        } else if facts
            .shape(other)
            .is_some_and(|shape| shape.iter().all(|d| d.as_i64() == Some(1)))
        {
            reason = Some(Reason::ScaleNotConstant {
                operand: role,
                scale: other.clone(),
            });
        }
    }
    reason.map_or(Ok(None), Err)
}
