//! Caches that are latents already.
//!
//! A cache of one head, or without an axis of heads, is also that of multi-query attention. It is a latent where keys or
//! values are made of its rows by a product with a stored weight. The product may be absorbed: it then multiplies the queries
//! or the outputs, by one matrix for each head.

use std::collections::HashSet;

use crate::facts::Facts;
use crate::graph::{Graph, input_at, is_op, output_at};
use crate::onnx::NodeProto;
use crate::recognize::append::{heads_of_packed, kind};
use crate::recognize::digits::scalar;
use crate::recognize::pass_through;

/// Most nodes that a search visits.
const FARTHEST: usize = 500;

/// The cache that a value is computed from.
#[derive(Debug)]
pub struct CacheBehind {
    /// The past input.
    pub past: String,
    /// Whether its rows have one head, or no axis of heads that a reader splits.
    one_head: bool,
    /// Whether a product with a stored weight is between the cache and the value.
    multiplied: bool,
}

impl CacheBehind {
    /// Whether the rows of the cache are latents, of which the value is made.
    pub fn is_latent(&self) -> bool {
        self.one_head && self.multiplied
    }
}

/// The past of the latent cache that `product`, a product of an attention, reads at input `cached`.
pub fn latent_behind(
    graph: &Graph,
    facts: &Facts,
    product: &NodeProto,
    cached: usize,
) -> Option<String> {
    let joins = |node: &NodeProto| kind(node).is_some() || is_op(node, "ScatterND");
    let behind = cache_behind(graph, facts, input_at(product, cached)?, &joins)?;
    let absorbed = || {
        let queries = input_at(product, 1 - cached.min(1));
        let outputs = output_at(product, 0);
        queries.is_some_and(|value| is_multiplied_by_head(graph, facts, value))
            || outputs.is_some_and(|value| multiplies_by_head(graph, facts, value))
    };
    (behind.one_head && (behind.multiplied || absorbed())).then_some(behind.past)
}

/// Whether `node` may be an append: a `Concat` of two inputs.
pub fn appends(node: &NodeProto) -> bool {
    is_op(node, "Concat") && node.input.len() == 2
}

/// The cache among the ancestors of `value`, not searched beyond another attention's product: if there are several, one
/// behind a product with a stored weight. `joins` selects the nodes that may compute a present.
pub fn cache_behind(
    graph: &Graph,
    facts: &Facts,
    value: &str,
    joins: &dyn Fn(&NodeProto) -> bool,
) -> Option<CacheBehind> {
    let mut seen = HashSet::new();
    let mut open = vec![(value, false)];
    let mut found: Option<CacheBehind> = None;
    while let Some((value, multiplied)) = open.pop() {
        if seen.len() > FARTHEST || !seen.insert((value, multiplied)) {
            continue;
        }
        let Some((_, node)) = graph.producer(value) else {
            continue;
        };
        let first = node.input.first().filter(|_| joins(node));
        if let Some((past, _)) = first.and_then(|i| pass_through::past(graph, facts, i)) {
            let one_head = match facts.shape(past) {
                Some([_, heads, _, _]) => heads.as_i64() == Some(1),
                Some([_, _, _]) => {
                    let present = node.output.first();
                    let heads = present.and_then(|o| heads_of_packed(graph, facts, o));
                    heads.is_none_or(|heads| heads == 1)
                }
                _ => false,
            };
            let known = found.as_ref().is_some_and(|known| known.multiplied);
            if !known && (multiplied || found.is_none()) {
                found = Some(CacheBehind {
                    past: past.to_owned(),
                    one_head,
                    multiplied,
                });
            }
            continue;
        }
        let weight = node.input.iter().any(|i| is_stored(graph, i, 2));
        match is_op(node, "MatMul") {
            true if !weight => {}
            product => {
                let multiplied = multiplied || product || (is_op(node, "Gemm") && weight);
                open.extend(node.input.iter().map(|i| (i.as_str(), multiplied)));
            }
        }
    }
    found
}

/// Whether `value` is a stored tensor of at least `rank` axes.
fn is_stored(graph: &Graph, value: &str, rank: usize) -> bool {
    let stored = graph.initializer(graph.resolve(value));
    stored.is_some_and(|tensor| tensor.dims.len() >= rank)
}

/// Whether `node` multiplies by a stored matrix for each head.
fn is_by_head(graph: &Graph, node: &NodeProto) -> bool {
    is_op(node, "MatMul") && input_at(node, 1).is_some_and(|weight| is_stored(graph, weight, 3))
}

/// Whether `node` only rearranges, joins or scales what it reads at its input `at`.
fn keeps(facts: &Facts, node: &NodeProto, at: usize) -> bool {
    let arranges = [
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Cast",
        "Identity",
    ];
    let scales = ["Mul", "Div"].iter().any(|op| is_op(node, op));
    let scaled = || input_at(node, 1 - at.min(1)).is_some_and(|by| scalar(facts, by).is_some());
    (at == 0 && arranges.iter().any(|op| is_op(node, op)))
        || is_op(node, "Concat")
        || (scales && scaled())
}

/// Whether a part of `value` is a product by a stored matrix for each head.
fn is_multiplied_by_head(graph: &Graph, facts: &Facts, value: &str) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        let Some((_, node)) = graph.producer(value) else {
            continue;
        };
        if is_by_head(graph, node) {
            return true;
        }
        if seen.len() < FARTHEST && seen.insert(value) {
            let inputs = node.input.iter().enumerate();
            let kept = inputs.filter(|(at, _)| keeps(facts, node, *at));
            open.extend(kept.map(|(_, input)| input.as_str()));
        }
    }
    false
}

/// Whether a product by a stored matrix for each head reads `value`.
fn multiplies_by_head(graph: &Graph, facts: &Facts, value: &str) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if seen.len() >= FARTHEST || !seen.insert(value) {
            continue;
        }
        for usage in graph.uses(value) {
            let (Some(at), Some(node)) = (usage.input, graph.node(usage.node)) else {
                continue;
            };
            if at == 0 && is_by_head(graph, node) {
                return true;
            }
            if keeps(facts, node, at) {
                open.extend(output_at(node, 0));
            }
        }
    }
    false
}
