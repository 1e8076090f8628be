//! A softmax and the two matrix products around it: the candidate for an attention, whatever operators are between
//! them.

use std::collections::HashSet;

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, is_contrib, is_op, is_standard};
use crate::onnx::NodeProto;
use crate::recognize::latent::latent_behind;
use crate::recognize::reject::{Operand, Reason};
use crate::recognize::site::Site;
use crate::recognize::softmax::softmax;

/// The domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// A softmax with the score product before it and the value product after it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// The node that makes the probabilities: the softmax, or the last of those that define it.
    pub softmax: NodeId,
    /// The product of queries and keys.
    pub score: NodeId,
    /// The product of probabilities and values.
    pub output: NodeId,
    /// The input of the value product that holds the probabilities; 0 in every attention.
    pub side: usize,
}

impl Candidate {
    /// Whether the candidate belongs to one of `sites`: it is another softmax between the same two products.
    ///
    /// # Errors
    /// A reason to refuse the candidate if it shares only one of the two products with a site.
    pub fn is_part_of(&self, sites: &[Site]) -> Result<bool, Reason> {
        for site in sites {
            match (site.score == self.score, site.output == self.output) {
                (true, true) => return Ok(true),
                (true, false) => return Err(Reason::ValueProducts { count: 2 }),
                (false, true) => return Err(Reason::ScoreProducts { count: 2 }),
                (false, false) => {}
            }
        }
        Ok(false)
    }
}

/// A product that a walk from the softmax has reached; `side` is the input at which it was reached. `obstacle` is the
/// first node on the path that rearranges elements, or the product itself if it is not a plain `MatMul`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Reached {
    product: NodeId,
    side: usize,
    obstacle: Option<NodeId>,
}

/// The candidate of `node`, or a node and the reason why it is refused; `None` if `node` is not a softmax between two
/// products of computed values.
pub fn candidate(
    graph: &Graph,
    facts: &Facts,
    id: NodeId,
    node: &NodeProto,
) -> Option<Result<Candidate, (NodeId, Reason)>> {
    let softmax = softmax(graph, facts, node)?;
    let scores = plain_first(scores(graph, facts, softmax.scores));
    if scores.is_empty() {
        return None;
    }
    let products = plain_first(value_products(graph, facts, softmax.probabilities));
    match (scores.as_slice(), products.as_slice()) {
        // A softmax without a value product is no attention: it selects experts or tokens.
        (_, []) => None,
        ([score], [output]) => {
            if let Some(refused) = obstacle(graph, facts, score, "scores")
                .or_else(|| obstacle(graph, facts, output, "probabilities"))
            {
                return Some(Err(refused));
            }
            Some(Ok(Candidate {
                softmax: id,
                score: score.product,
                output: output.product,
                side: output.side,
            }))
        }
        (scores, [_]) => Some(Err((
            id,
            Reason::ScoreProducts {
                count: scores.len(),
            },
        ))),
        (_, products) => Some(Err((
            id,
            Reason::ValueProducts {
                count: products.len(),
            },
        ))),
    }
}

/// The products reached without an obstacle, or all if there is no such product.
fn plain_first(mut found: Vec<Reached>) -> Vec<Reached> {
    if found.iter().any(|r| r.obstacle.is_none()) {
        found.retain(|r| r.obstacle.is_none());
    }
    found.sort();
    found.dedup_by_key(|r| (r.product, r.side));
    found
}

/// The node and the reason of the obstacle on the path to the product `reached`, if there is one.
fn obstacle(
    graph: &Graph,
    facts: &Facts,
    reached: &Reached,
    what: &'static str,
) -> Option<(NodeId, Reason)> {
    let at = reached.obstacle?;
    let node = graph.node(at)?;
    let product = graph.node(reached.product)?;
    let operand = match what {
        "scores" => Operand::Key,
        _ => Operand::Value,
    };
    // An operand with one head that all queries share, with the heads as rows: the form that a rewrite produces.
    let cached = 1 - reached.side.min(1);
    if let Some(past) = latent_behind(graph, facts, product, cached) {
        return Some((at, Reason::AlreadyLatent { operand, past }));
    }
    if at == reached.product {
        let op = full_name(node);
        if quantized_operand(node).is_some() {
            return Some((at, Reason::Quantized { operand, op }));
        }
        let detail = "it multiplies queries, keys or values in a form that is not followed";
        let detail = detail.to_owned();
        return Some((at, Reason::UnsupportedOperator { op, detail }));
    }
    let op = node.op_type().to_owned();
    Some((at, Reason::Rearranged { what, op }))
}

/// The products of two computed values from which `scores`, the input of a softmax, are computed.
fn scores(graph: &Graph, facts: &Facts, scores: &str) -> Vec<Reached> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut open: Vec<(&str, Option<NodeId>)> = vec![(scores, None)];
    while let Some((value, obstacle)) = open.pop() {
        if !seen.insert(value) {
            continue;
        }
        let Some((id, node)) = graph.producer(value) else {
            continue;
        };
        if let Some(plain) = product(graph, facts, node) {
            found.push(Reached {
                product: id,
                side: 0,
                obstacle: if plain {
                    obstacle
                } else {
                    obstacle.or(Some(id))
                },
            });
        } else if is_between(node) && main_output(node) == Some(value) {
            open.extend(node.input.iter().map(|i| (i.as_str(), obstacle)));
        } else if rearranges(node) {
            let through = node.input.first();
            open.extend(through.map(|i| (i.as_str(), obstacle.or(Some(id)))));
        }
    }
    found
}

/// The products that read `probabilities`, the output of a softmax, directly or through other operators.
fn value_products(graph: &Graph, facts: &Facts, probabilities: &str) -> Vec<Reached> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut open: Vec<(&str, Option<NodeId>)> = vec![(probabilities, None)];
    while let Some((value, obstacle)) = open.pop() {
        for usage in graph.uses(value) {
            let (Some(input), Some(node)) = (usage.input, graph.node(usage.node)) else {
                continue;
            };
            let id = usage.node;
            if let Some(plain) = product(graph, facts, node) {
                found.push(Reached {
                    product: id,
                    side: input,
                    obstacle: if plain {
                        obstacle
                    } else {
                        obstacle.or(Some(id))
                    },
                });
            } else if is_between(node) && seen.insert(id) {
                open.extend(main_output(node).map(|o| (o, obstacle)));
            } else if rearranges(node) && input == 0 && seen.insert(id) {
                let obstacle = obstacle.or(Some(id));
                open.extend(node.output.iter().map(|o| (o.as_str(), obstacle)));
            }
        }
    }
    found
}

/// Whether `node` is a plain `MatMul`, if it is a product of two computed values; `None` for any other node.
fn product(graph: &Graph, facts: &Facts, node: &NodeProto) -> Option<bool> {
    if let Some(right) = quantized_operand(node) {
        let operands = [0, right].map(|at| node.input.get(at));
        let computed = |value: Option<&String>| value.is_some_and(|v| is_computed(graph, facts, v));
        return operands.into_iter().all(computed).then_some(false);
    }
    let plain = is_op(node, "MatMul");
    let other = is_op(node, "Einsum") || is_contrib(node, "FusedMatMul");
    ((plain || other) && is_product(graph, facts, node)).then_some(plain)
}

/// The input position of the right operand of an integer matrix product; `None` for all other operators.
fn quantized_operand(node: &NodeProto) -> Option<usize> {
    match node.op_type() {
        "MatMulInteger" if is_standard(node) => Some(1),
        "DynamicQuantizeMatMul" | "MatMulIntegerToFloat" if node.domain() == MICROSOFT => Some(1),
        "QLinearMatMul" if is_standard(node) => Some(3),
        _ => None,
    }
}

/// The operator type of `node`, prefixed with its domain unless that is ONNX's own.
fn full_name(node: &NodeProto) -> String {
    match node.domain() {
        "" | "ai.onnx" => node.op_type().to_owned(),
        domain => format!("{domain}.{}", node.op_type()),
    }
}

/// The first output of `node`. The other outputs of a quantizer are scales, which the products of other layers read
/// too.
fn main_output(node: &NodeProto) -> Option<&str> {
    node.output.first().map(String::as_str)
}

/// Whether `node` rearranges the elements of scores or probabilities.
fn rearranges(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx")
        && matches!(
            node.op_type(),
            "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten"
        )
}

/// Whether both operands of a `MatMul` are computed: a constant right operand is a projection.
pub fn is_product(graph: &Graph, facts: &Facts, node: &NodeProto) -> bool {
    node.input.len() == 2 && node.input.iter().all(|i| is_computed(graph, facts, i))
}

fn is_computed(graph: &Graph, facts: &Facts, value: &str) -> bool {
    let source = graph.resolve(value);
    graph.initializer(source).is_none() && facts.floats(source).is_none()
}

/// Whether `node` may be between the two products: scaling, mask, softcap, guard, sink or dropout.
fn is_between(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx")
        && matches!(
            node.op_type(),
            "Add"
                | "Sub"
                | "Mul"
                | "Div"
                | "Where"
                | "Tanh"
                | "Cast"
                | "Clip"
                | "Min"
                | "Max"
                | "Identity"
                | "IsNaN"
                | "Dropout"
                | "Concat"
                | "Slice"
                | "Softmax"
                // Rescaling after integer products.
                | "DequantizeLinear"
                | "QuantizeLinear"
                | "DynamicQuantizeLinear"
        )
}
