//! The caches of a model whose past and present can be one buffer.

use gqa2mla_passes::graph::{Graph, input_at, is_contrib, output_at};
use gqa2mla_passes::onnx::{ModelProto, NodeProto};

use crate::validate::interface::{CachePort, Interface};

/// An operator that appends new rows to the past in place if past and present are one buffer.
const OPERATOR: &str = "GroupQueryAttention";
/// Its past inputs, each with the corresponding present output.
const PAIRS: [(usize, usize); 2] = [(3, 1), (4, 2)];

/// Past and present of every cache of `interface` that can share a buffer: caches that the graph writes in place, and
/// caches of the operator. The buffer of the operator is longer than the past, so that no other node may read the past
/// or its shape.
pub fn in_place(model: &ModelProto, interface: &Interface) -> Vec<(String, String)> {
    let Some(graph) = &model.graph else {
        return Vec::new();
    };
    let view = Graph::new(graph);
    let shares = |cache: &&CachePort| {
        let maker = view.producer(&cache.present).map(|(_, node)| node);
        let readers = view.uses(&cache.past);
        cache.in_place || maker.is_some_and(|node| continues(node, cache)) && readers.len() == 1
    };
    let pairs = interface.caches.iter().filter(shares);
    pairs.map(|c| (c.past.clone(), c.present.clone())).collect()
}

/// Whether `node` is the operator, reads the past of `cache`, and computes its present.
fn continues(node: &NodeProto, cache: &CachePort) -> bool {
    is_contrib(node, OPERATOR)
        && PAIRS.iter().any(|&(past, present)| {
            input_at(node, past) == Some(cache.past.as_str())
                && output_at(node, present) == Some(cache.present.as_str())
        })
}
