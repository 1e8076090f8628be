//! Which caches of a model may have past and present in one buffer.

use gqa2mla_passes::graph::{Graph, input_at, is_contrib, output_at};
use gqa2mla_passes::onnx::{ModelProto, NodeProto};

use crate::validate::interface::{CachePort, Interface};

/// The operator that writes new rows behind the past ones where both are one buffer.
const OPERATOR: &str = "GroupQueryAttention";
/// Its past inputs, each with the present output that goes on with it.
const PAIRS: [(usize, usize); 2] = [(3, 1), (4, 2)];

/// Past and present of every cache of `interface` that may share a buffer: those that the graph writes in place, and those
/// that the operator does. The operator's buffer is longer than what it holds, so that a past whose shape anything else reads
/// has to stay as it is.
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

/// Whether `node` reads the past of `cache` and makes its present, in one buffer if it may.
fn continues(node: &NodeProto, cache: &CachePort) -> bool {
    is_contrib(node, OPERATOR)
        && PAIRS.iter().any(|&(past, present)| {
            input_at(node, past) == Some(cache.past.as_str())
                && output_at(node, present) == Some(cache.present.as_str())
        })
}
