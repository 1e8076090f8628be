//! Attention in the form MatMul, Softmax, MatMul: exports by TorchScript, optimum and dynamo, of sdpa and eager
//! attention.
//!
//! The nodes between score product and value product (masks, softcaps, sinks, guards) need no proof: a rewrite keeps
//! them, and they get the same inputs. What is proved is that the right operand of each product is `scale *
//! repeat_kv(cache)`.

use std::collections::HashSet;

use tract_data::prelude::TDim;

use crate::facts::precision::is_float;
use crate::facts::{Facts, shape_text as text};
use crate::graph::{Graph, NodeId, is_contrib, is_op};
use crate::onnx::NodeProto;
use crate::recognize::cache::latent_behind;
use crate::recognize::module_name::module_of;
use crate::recognize::reject::{Operand, Reason};
use crate::recognize::side::{Proved, prove};
use crate::recognize::site::{Dialect, Side, Site};

/// A softmax with its score product and value product.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    softmax: NodeId,
    score: NodeId,
    output: NodeId,
    /// Which input of the value product holds the probabilities; 0 in every attention.
    side: usize,
}

/// A product found by a walk from the softmax, and the first node on the path that prevents recognition: it rearranges
/// elements, or multiplies by `Einsum` or `FusedMatMul`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Reached {
    product: NodeId,
    side: usize,
    obstacle: Option<NodeId>,
}

/// The candidate for which `node` is the softmax; `None` if it is not a softmax over a product of two computed values.
pub fn candidate(
    graph: &Graph,
    facts: &Facts,
    id: NodeId,
    node: &NodeProto,
) -> Option<Result<Candidate, (NodeId, Reason)>> {
    if !is_op(node, "Softmax") {
        return None;
    }
    let scores = plain_first(scores(graph, facts, node));
    if scores.is_empty() {
        return None;
    }
    let products = plain_first(value_products(graph, facts, node));
    match (scores.as_slice(), products.as_slice()) {
        // A softmax without a value product selects experts or tokens.
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

/// The products that were reached without an obstacle; all products if there are none of these.
fn plain_first(mut found: Vec<Reached>) -> Vec<Reached> {
    if found.iter().any(|r| r.obstacle.is_none()) {
        found.retain(|r| r.obstacle.is_none());
    }
    found.sort();
    found.dedup_by_key(|r| (r.product, r.side));
    found
}

/// The refusal for the obstacle on the path to a product, if there is one.
fn obstacle(
    graph: &Graph,
    facts: &Facts,
    reached: &Reached,
    what: &'static str,
) -> Option<(NodeId, Reason)> {
    let at = reached.obstacle?;
    let node = graph.node(at)?;
    let product = graph.node(reached.product)?;
    // The product reads a latent cache: the model is the result of a rewrite.
    let cached = product.input.get(1 - reached.side.min(1));
    if let Some(past) = cached.and_then(|v| latent_behind(graph, facts, v)) {
        let operand = match what {
            "scores" => Operand::Key,
            _ => Operand::Value,
        };
        return Some((at, Reason::AlreadyLatent { operand, past }));
    }
    if at == reached.product {
        let op = match node.domain() {
            "" | "ai.onnx" => node.op_type().to_owned(),
            domain => format!("{domain}.{}", node.op_type()),
        };
        let detail = "it multiplies queries, keys or values in a form that is not followed";
        let detail = detail.to_owned();
        return Some((at, Reason::UnsupportedOperator { op, detail }));
    }
    let op = node.op_type().to_owned();
    Some((at, Reason::Rearranged { what, op }))
}

/// The products of two computed values that the input of `softmax` is computed from.
fn scores(graph: &Graph, facts: &Facts, softmax: &NodeProto) -> Vec<Reached> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut open: Vec<(&str, Option<NodeId>)> = Vec::new();
    open.extend(softmax.input.first().map(|i| (i.as_str(), None)));
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
        } else if is_between(node) {
            open.extend(node.input.iter().map(|i| (i.as_str(), obstacle)));
        } else if rearranges(node) {
            let through = node.input.first();
            open.extend(through.map(|i| (i.as_str(), obstacle.or(Some(id)))));
        }
    }
    found
}

/// The products that the output of `softmax` reaches, and at which input.
fn value_products(graph: &Graph, facts: &Facts, softmax: &NodeProto) -> Vec<Reached> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut open: Vec<(&str, Option<NodeId>)> = Vec::new();
    open.extend(softmax.output.first().map(|o| (o.as_str(), None)));
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
                open.extend(node.output.iter().map(|o| (o.as_str(), obstacle)));
            } else if rearranges(node) && input == 0 && seen.insert(id) {
                let obstacle = obstacle.or(Some(id));
                open.extend(node.output.iter().map(|o| (o.as_str(), obstacle)));
            }
        }
    }
    found
}

/// Whether `node` is a plain `MatMul`, if it multiplies two computed values; `None` otherwise.
fn product(graph: &Graph, facts: &Facts, node: &NodeProto) -> Option<bool> {
    let plain = is_op(node, "MatMul");
    let other = is_op(node, "Einsum") || is_contrib(node, "FusedMatMul");
    ((plain || other) && is_product(graph, facts, node)).then_some(plain)
}

/// Whether `node` rearranges the elements of scores or probabilities.
fn rearranges(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx")
        && matches!(
            node.op_type(),
            "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten"
        )
}

/// Whether `node` has two operands and both are computed. A product with a constant is a projection.
pub fn is_product(graph: &Graph, facts: &Facts, node: &NodeProto) -> bool {
    node.input.len() == 2
        && node.input.iter().all(|input| {
            let source = graph.resolve(input);
            graph.initializer(source).is_none() && facts.floats(source).is_none()
        })
}

/// Whether `node` may be between the products: scale, mask, softcap, guard, sink or dropout.
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
        )
}

/// Proves that `candidate` is an attention whose keys and values are repeated KV heads.
pub fn recognize(
    graph: &Graph,
    facts: &Facts,
    layer: usize,
    candidate: Candidate,
) -> Result<Site, (NodeId, Reason)> {
    let Candidate {
        softmax,
        score,
        output,
        side,
    } = candidate;
    if side != 0 {
        return Err((output, Reason::ValueProducts { count: 0 }));
    }
    let at = |id| move |reason| (id, reason);
    let operands = |id| match graph.node(id).map(|n| n.input.as_slice()) {
        Some([left, right]) => Some((left.as_str(), right.as_str())),
        _ => None,
    };
    let (Some((query, keys)), Some((probabilities, values))) = (operands(score), operands(output))
    else {
        return Err((softmax, Reason::ScoreProducts { count: 0 }));
    };
    let (query_shape, heads) = query_shape(facts, query).map_err(at(score))?;
    let key = prove(graph, facts, keys, Operand::Key, &query_shape)?;
    let value = prove(graph, facts, values, Operand::Value, &query_shape)?;
    if key.kv_heads != value.kv_heads {
        let reason = Reason::RepeatsDiffer {
            key: key.kv_heads as i64,
            value: value.kv_heads as i64,
        };
        return Err((output, reason));
    }
    if key.side.cache.is_some() != value.side.cache.is_some() {
        return Err((output, Reason::HalfCached));
    }
    same_batch(facts, query, &key, &query_shape).map_err(at(score))?;
    same_heads(facts, probabilities, &query_shape).map_err(at(output))?;
    let types = (facts.elem_type(query), facts.elem_type(probabilities));
    let (elem_type, (Some(score_type), Some(value_type)), true) =
        (key.elem_type, types, key.elem_type == value.elem_type)
    else {
        let reason = operand_shape(
            facts,
            Operand::Query,
            query,
            "a known element type, the same for keys and values",
        );
        return Err((score, reason));
    };
    if ![elem_type, score_type, value_type]
        .into_iter()
        .all(is_float)
    {
        let reason = operand_shape(facts, Operand::Query, query, "a floating-point type");
        return Err((score, reason));
    }
    let at_interface = key
        .side
        .cache
        .as_ref()
        .and_then(|c| facts.elem_type(c.present()));
    Ok(Site {
        layer,
        name: module_of(graph, score),
        dialect: Dialect::MATMUL,
        heads,
        kv_heads: key.kv_heads,
        elem_type,
        cached_type: at_interface.unwrap_or(elem_type),
        query: query.to_owned(),
        score,
        output,
        probabilities: probabilities.to_owned(),
        key: Side {
            product_type: score_type,
            ..key.side
        },
        value: Side {
            product_type: value_type,
            ..value.side
        },
    })
}

fn operand_shape(facts: &Facts, operand: Operand, value: &str, expected: &str) -> Reason {
    Reason::OperandShape {
        operand,
        value: value.to_owned(),
        found: facts
            .shape(value)
            .map_or_else(|| "unknown".to_owned(), text),
        expected: expected.to_owned(),
    }
}

fn query_shape(facts: &Facts, query: &str) -> Result<(Vec<TDim>, usize), Reason> {
    let shape = facts.shape(query).unwrap_or_default();
    match shape {
        [_, heads, _, size] => match (heads.as_i64(), size.as_i64()) {
            (Some(heads), Some(_)) if heads > 0 => Ok((shape.to_vec(), heads as usize)),
            _ => Err(operand_shape(
                facts,
                Operand::Query,
                query,
                "[batch, heads, length, head_size] with constant heads and head_size",
            )),
        },
        _ => Err(operand_shape(
            facts,
            Operand::Query,
            query,
            "[batch, heads, length, head_size]",
        )),
    }
}

/// Checks that query and keys have the same batch size: the products would broadcast, but the rewrite flattens the
/// batch axis.
fn same_batch(
    facts: &Facts,
    query: &str,
    key: &Proved,
    query_shape: &[TDim],
) -> Result<(), Reason> {
    if query_shape.first() == Some(&key.batch) {
        return Ok(());
    }
    let expected = format!("[{}, heads, length, head_size] as the keys have", key.batch);
    Err(operand_shape(facts, Operand::Query, query, &expected))
}

/// Checks that the probabilities are those of all query heads.
fn same_heads(facts: &Facts, probabilities: &str, query_shape: &[TDim]) -> Result<(), Reason> {
    let shape = facts.shape(probabilities).unwrap_or_default();
    if shape.len() == 4 && shape.get(1) == query_shape.get(1) {
        return Ok(());
    }
    let expected = "the probabilities of all query heads, [batch, heads, length, past + length]";
    Err(operand_shape(
        facts,
        Operand::Probabilities,
        probabilities,
        expected,
    ))
}
