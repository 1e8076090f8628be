//! Growing caches that belong to no recognised or refused attention. They are reported, so that no cache is ignored
//! silently.

use std::collections::HashSet;

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, is_alias, is_op, label};
use crate::onnx::NodeProto;
use crate::recognize::reject::{Reason, Reject};

/// Largest number of nodes that the search around one attention visits.
const FARTHEST: usize = 2000;

/// The past inputs that belong to recognised or refused attentions.
#[derive(Debug, Default)]
pub struct Claims(HashSet<String>);

impl Claims {
    /// Adds every past that the attention around `start`, a softmax or attention operator, reads.
    pub fn add(&mut self, graph: &Graph, start: NodeId) {
        let mut seen = HashSet::new();
        let mut open: Vec<&str> = Vec::new();
        if let Some(node) = graph.node(start) {
            open.extend(node.input.iter().map(String::as_str));
            // The value product comes after the softmax.
            for id in after(graph, node) {
                let inputs = graph.node(id).map(|n| n.input.as_slice());
                open.extend(inputs.unwrap_or_default().iter().map(String::as_str));
            }
        }
        while let Some(value) = open.pop() {
            if seen.len() > FARTHEST || !seen.insert(value) {
                continue;
            }
            if graph.input(value).is_some() {
                self.0.insert(value.to_owned());
            }
            let Some((_, node)) = graph.producer(value) else {
                continue;
            };
            if !is_projection(graph, node) {
                open.extend(node.input.iter().map(String::as_str));
                continue;
            }
            // The input of a projection belongs to another layer, unless it is a cache: the projection of a latent.
            let projected = node.input.first().and_then(|i| graph.producer(i));
            let past = projected
                .filter(|(_, n)| is_op(n, "Concat"))
                .and_then(|(_, n)| n.input.first());
            self.0.extend(past.map(|p| graph.resolve(p).to_owned()));
        }
    }

    /// A reject for every cache that grows in `graph` and belongs to no attention, numbered from `layer` on.
    pub fn missing(&self, graph: &Graph, facts: &Facts, layer: usize) -> Vec<Reject> {
        let mut missing = Vec::new();
        for (_, node) in graph.nodes() {
            if let Some(past) =
                kept_by_operator(graph, facts, node).filter(|p| !self.0.contains(*p))
            {
                missing.push(Reject {
                    layer: layer + missing.len(),
                    node: label(node).to_owned(),
                    reason: Reason::UnknownReader {
                        past: past.to_owned(),
                        reader: node.op_type().to_owned(),
                    },
                });
            }
            let Some((past, present)) = growing(graph, facts, node) else {
                continue;
            };
            if self.0.contains(past) {
                continue;
            }
            // A cache without a reader belongs to no attention.
            let mut readers = graph.uses(present).iter().filter_map(|u| {
                let reader = graph.node(u.node)?;
                (!is_op(reader, "Shape")).then(|| reader.op_type().to_owned())
            });
            let Some(reader) = readers.next() else {
                continue;
            };
            missing.push(Reject {
                layer: layer + missing.len(),
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

/// The past of a key cache that `node`, an operator outside the default domain, updates itself: it reads a graph input
/// of rank 4 and makes a graph output, both with `key` in their names.
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
    let ([written, _], true) = (node.input.as_slice(), is_op(node, "Concat")) else {
        return None;
    };
    let past = graph.resolve(written);
    let rank = facts.shape(past).map_or(0, <[_]>::len);
    if graph.input(past).is_none() || rank < 3 {
        return None;
    }
    let present = node.output.first()?;
    let renamed = |u: &crate::graph::Use| {
        let reader = graph.node(u.node).filter(|n| is_alias(n));
        reader.is_some_and(|n| n.output.iter().any(|o| graph.is_output(o)))
    };
    (graph.is_output(present) || graph.uses(present).iter().any(renamed))
        .then_some((past, present.as_str()))
}

/// The nodes after `node`, up to the next products and projections.
fn after(graph: &Graph, node: &NodeProto) -> Vec<NodeId> {
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
            if !ends && !is_projection(graph, reader) && found.len() < 12 {
                open.extend(reader.output.iter().map(String::as_str));
            }
        }
    }
    found
}

/// Whether `node` is a product with a weight, quantized or not.
fn is_projection(graph: &Graph, node: &NodeProto) -> bool {
    let product = ["MatMul", "Gemm", "Conv", "Einsum"]
        .iter()
        .any(|op| node.op_type().contains(op));
    product
        && node
            .input
            .iter()
            .skip(1)
            .any(|i| graph.initializer(graph.resolve(i)).is_some())
}
