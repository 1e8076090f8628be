//! Caches that no attention, recognised or refused, reads. Each is reported as a reject, so that no cache is
//! ignored silently.

use std::collections::{HashMap, HashSet};

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, is_op, label};
use crate::onnx::NodeProto;
use crate::recognize::append::kind;
use crate::recognize::pass_through;
use crate::recognize::reject::{Reason, Reject};

/// Largest number of nodes that the search around one attention visits.
const FARTHEST: usize = 2000;

/// The past inputs that belong to recognised or refused attentions.
#[derive(Debug, Default)]
pub struct Claims {
    /// The past inputs of all caches of the graph.
    growing: HashSet<String>,
    claimed: HashSet<String>,
    /// The past inputs of refused attentions, each with the last softmax that reads it and the layer number of the
    /// attention.
    refused: HashMap<String, (NodeId, usize)>,
}

impl Claims {
    /// Finds the caches of `graph`; none is claimed yet.
    pub fn of(graph: &Graph, facts: &Facts) -> Self {
        let pasts = graph.nodes().filter_map(|(_, node)| {
            let kept = kept_by_operator(graph, facts, node);
            kept.or_else(|| growing(graph, facts, node).map(|(past, _)| past))
        });
        Self {
            growing: pasts.map(str::to_owned).collect(),
            ..Self::default()
        }
    }

    /// Whether the softmax `at` belongs to an attention that is refused already: it reads one of `caches` that a
    /// refused softmax reads, and does not depend on that softmax, as the next layer would.
    pub fn is_refused(&self, graph: &Graph, at: NodeId, caches: &[String]) -> bool {
        let mut known = caches.iter().filter_map(|past| self.refused.get(past));
        let first = known.next();
        first.is_some_and(|&(before, _)| !follows(graph, at, before))
    }

    /// The first of `caches` that a refused layer reads, with the number of that layer.
    pub fn shared(&self, caches: &[String]) -> Option<(String, usize)> {
        let mut caches = caches.iter();
        caches.find_map(|past| Some((past.clone(), self.refused.get(past)?.1)))
    }

    /// Records that `layer`, refused at the softmax `at`, reads `caches`.
    pub fn refuse(&mut self, at: NodeId, layer: usize, caches: Vec<String>) {
        let caches = caches.into_iter();
        self.refused.extend(caches.map(|past| (past, (at, layer))));
    }

    /// Claims every graph input that the attention around `start` (a softmax or a fused operator) reads. Returns those
    /// of them that are pasts of caches, sorted.
    pub fn add(&mut self, graph: &Graph, facts: &Facts, start: NodeId) -> Vec<String> {
        let mut found: HashSet<String> = HashSet::new();
        let mut seen = HashSet::new();
        let mut open: Vec<&str> = Vec::new();
        if let Some(node) = graph.node(start) {
            open.extend(node.input.iter().map(String::as_str));
            // The values enter at the products after the softmax.
            for id in after(graph, facts, node) {
                let inputs = graph.node(id).map(|n| n.input.as_slice());
                open.extend(inputs.unwrap_or_default().iter().map(String::as_str));
            }
        }
        while let Some(value) = open.pop() {
            if seen.len() > FARTHEST || !seen.insert(value) {
                continue;
            }
            if graph.input(value).is_some() {
                found.insert(value.to_owned());
            }
            let Some((_, node)) = graph.producer(value) else {
                continue;
            };
            // `Shape` leads from masks and positions to other layers' values, and the scale outputs of a quantizer
            // likewise.
            let scales = is_op(node, "DynamicQuantizeLinear")
                && node.output.first().is_none_or(|first| first != value);
            if is_op(node, "Shape") || scales {
                continue;
            }
            if !is_projection(graph, facts, node) {
                open.extend(node.input.iter().map(String::as_str));
                continue;
            }
            // The input of a projection belongs to another layer, unless it is a cache: the projection of a latent.
            let projected = node.input.first().and_then(|i| graph.producer(i));
            let past = projected
                .filter(|(_, n)| is_op(n, "Concat"))
                .and_then(|(_, n)| pass_through::past(graph, facts, n.input.first()?));
            found.extend(past.map(|(past, _)| past.to_owned()));
        }
        self.claimed.extend(found.iter().cloned());
        let caches = found.into_iter();
        let mut caches: Vec<String> = caches.filter(|p| self.growing.contains(p)).collect();
        caches.sort_unstable();
        caches
    }

    /// A reject for each attention of which a growing cache in `graph` is not claimed. `layer` is the layer number of
    /// the first one.
    pub fn missing(&self, graph: &Graph, facts: &Facts, layer: usize) -> Vec<Reject> {
        let mut missing: Vec<Reject> = Vec::new();
        let mut owners = HashSet::new();
        for (_, node) in graph.nodes() {
            let kept = kept_by_operator(graph, facts, node);
            let kept = kept.map(|past| (past, node.op_type().to_owned()));
            let unclaimed = kept.or_else(|| {
                let (past, present) = growing(graph, facts, node)?;
                // A cache that nothing reads belongs to no attention.
                let mut readers = graph.uses(present).iter().filter_map(|u| {
                    let reader = graph.node(u.node)?;
                    (!is_op(reader, "Shape")).then(|| reader.op_type().to_owned())
                });
                Some((past, readers.next()?))
            });
            let Some((past, reader)) = unclaimed.filter(|(p, _)| !self.claimed.contains(*p)) else {
                continue;
            };
            // The key cache and the value cache of one attention give one reject.
            if !owners.insert(owner(past)) {
                continue;
            }
            missing.push(Reject {
                layer: layer + missing.len(),
                within: None,
                node: label(node).to_owned(),
                reason: Reason::UnknownReader {
                    past: past.to_owned(),
                    reader,
                },
            });
        }
        missing
    }
}

/// Whether the node `later` depends on the output of `before`. The search ends after [`FARTHEST`] nodes.
fn follows(graph: &Graph, later: NodeId, before: NodeId) -> bool {
    let mut seen = HashSet::from([later]);
    let mut open = vec![later];
    while let Some(id) = open.pop() {
        let inputs = graph.node(id).map(|n| n.input.as_slice());
        let makers = inputs.unwrap_or_default().iter();
        for (maker, _) in makers.filter_map(|value| graph.producer(value)) {
            if maker == before {
                return true;
            }
            // In graph order, a node before `before` cannot depend on it.
            if maker > before && seen.len() < FARTHEST && seen.insert(maker) {
                open.push(maker);
            }
        }
    }
    false
}

/// The common part of the names of the key cache and the value cache of one attention.
fn owner(past: &str) -> Vec<String> {
    let name = past.to_lowercase();
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    let word = |word: &str| match word {
        "v" | "value" | "values" | "k" | "key" | "keys" => "kv".to_owned(),
        _ => word.to_owned(),
    };
    words.map(word).collect()
}

/// The past of a key cache that `node`, an operator outside the default domain, appends to by itself: it reads a graph
/// input and computes a graph output that are both named as keys.
fn kept_by_operator<'g>(graph: &Graph<'g>, facts: &Facts, node: &'g NodeProto) -> Option<&'g str> {
    if matches!(node.domain(), "" | "ai.onnx") {
        return None;
    }
    let is_key = |value: &str| value.to_lowercase().contains("key");
    node.output
        .iter()
        .find(|o| is_key(o) && graph.is_output(o))?;
    let mut pasts = node.input.iter().map(|input| graph.resolve(input));
    pasts.find(|past| {
        let rank = facts.shape(past).map_or(0, <[_]>::len);
        is_key(past) && graph.input(past).is_some() && rank == 4
    })
}

/// Past and present, if `node` appends to a cache.
fn growing<'g>(
    graph: &Graph<'g>,
    facts: &Facts,
    node: &'g NodeProto,
) -> Option<(&'g str, &'g str)> {
    kind(node)?;
    let (past, _) = pass_through::past(graph, facts, node.input.first()?)?;
    let rank = facts.shape(past).map_or(0, <[_]>::len);
    if rank < 3 {
        return None;
    }
    let present = node.output.first()?;
    pass_through::present(graph, facts, present)?;
    Some((past, present.as_str()))
}

/// The nodes that depend on `node`, up to and including the next products and projections.
fn after(graph: &Graph, facts: &Facts, node: &NodeProto) -> Vec<NodeId> {
    let mut found = Vec::new();
    let mut open: Vec<&str> = node.output.iter().map(String::as_str).collect();
    while let Some(value) = open.pop() {
        for usage in graph.uses(value) {
            if found.len() > FARTHEST || found.contains(&usage.node) {
                continue;
            }
            found.push(usage.node);
            let Some(reader) = graph.node(usage.node) else {
                continue;
            };
            let ends = matches!(
                reader.op_type(),
                "MatMul" | "FusedMatMul" | "Einsum" | "Gemm"
            );
            if !ends && !is_projection(graph, facts, reader) && found.len() < 12 {
                open.extend(reader.output.iter().map(String::as_str));
            }
        }
    }
    found
}

/// Whether `node` is a product with a stored weight, quantized or not.
fn is_projection(graph: &Graph, facts: &Facts, node: &NodeProto) -> bool {
    let product = ["MatMul", "Gemm", "Conv", "Einsum"]
        .iter()
        .any(|op| node.op_type().contains(op));
    product && node.input.iter().any(|i| is_weight(graph, facts, i))
}

/// Whether `value` is a stored tensor of two axes or more, or has rank 2. Operands of attention have a batch axis;
/// scales and zero points have at most one axis.
fn is_weight(graph: &Graph, facts: &Facts, value: &str) -> bool {
    let stored = graph.initializer(graph.resolve(value));
    stored.is_some_and(|tensor| tensor.dims.len() > 1)
        || facts.shape(value).is_some_and(|shape| shape.len() == 2)
}
