//! The caches of a model whose past and present can be one buffer.

use gqa2mla_passes::analysis::raise::reads_room;
use gqa2mla_passes::graph::{Graph, input_at, is_contrib, is_op, output_at, subgraphs};
use gqa2mla_passes::onnx::{ModelProto, NodeProto};

use crate::validate::cache::{CacheKind, CachePort};
use crate::validate::interface::Interface;

/// An operator that appends new rows to the past in place if past and present are one buffer.
const OPERATOR: &str = "GroupQueryAttention";
/// Its past inputs, each with the corresponding present output.
const PAIRS: [(usize, usize); 2] = [(3, 1), (4, 2)];

/// Past and present of every cache of `interface` that can share a buffer: caches that the graph writes in place, and
/// caches of the operator. The buffer of the operator is longer than the past, so that no other node may read the past,
/// or its shape as that of the past.
pub fn in_place(model: &ModelProto, interface: &Interface) -> Vec<(String, String)> {
    let Some(graph) = &model.graph else {
        return Vec::new();
    };
    let view = Graph::new(graph);
    let shares = |cache: &&CachePort| {
        // The rows of a window move up, so that the present is no continuation of the buffer.
        if cache.window().is_some() {
            return false;
        }
        let Some((id, maker)) = view.producer(&cache.present) else {
            return false;
        };
        let no_other = view
            .uses(&cache.past)
            .iter()
            .all(|read| read.node == id || view.node(read.node).is_some_and(reads_room));
        let by_graph = matches!(cache.kind, CacheKind::InPlace | CacheKind::Static);
        by_graph || no_other && continues(maker, &cache.past, &cache.present)
    };
    let pairs = interface.caches.iter().filter(shares);
    pairs.map(|c| (c.past.clone(), c.present.clone())).collect()
}

/// Whether `node` computes `present` from `past` in one buffer: the operator, or an `If` both of whose branches do.
fn continues(node: &NodeProto, past: &str, present: &str) -> bool {
    if is_op(node, "If") {
        let at = node.output.iter().position(|output| output == present);
        let mut branches = subgraphs(node);
        return branches.all(|branch| {
            let view = Graph::new(branch);
            let output = at.and_then(|at| branch.output.get(at));
            let maker = output.and_then(|output| view.producer(output.name()));
            maker.is_some_and(|(_, maker)| {
                let made = output.map_or("", |output| output.name());
                continues(maker, past, made) || keeps_rows_behind(&view, maker, past)
            })
        });
    }
    is_contrib(node, OPERATOR)
        && PAIRS.iter().any(|&(input, output)| {
            input_at(node, input) == Some(past) && output_at(node, output) == Some(present)
        })
}

/// Whether `node` puts new rows in front of the rows of `past` behind them, so that a longer buffer keeps its length.
fn keeps_rows_behind(view: &Graph, node: &NodeProto, past: &str) -> bool {
    let behind = node.input.last().and_then(|last| view.producer(last));
    is_op(node, "Concat")
        && behind.is_some_and(|(_, n)| is_op(n, "Slice") && input_at(n, 0) == Some(past))
}
