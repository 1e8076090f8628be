//! Dead code elimination after a rewrite. It removes only values that the rewrite has made dead: values that had no
//! reader in the exported graph are kept.

use std::collections::{HashMap, HashSet};

use crate::graph::{captured, subgraphs};
use crate::onnx::GraphProto;

/// The live values of a graph: its outputs, and the inputs of nodes with a live output.
#[derive(Debug, Clone)]
pub struct Live {
    values: HashSet<String>,
    all: HashSet<String>,
}

impl Live {
    /// Computes the live values of `graph` in linear time.
    pub fn of(graph: &GraphProto) -> Self {
        Self::reached_from(graph, &HashSet::new())
    }

    /// Counts `values` as live before the rewrite, so that [`cleanup`] removes those that have no reader after it. They
    /// come from fused operators that were expanded for the rewrite; the exporter did not write them.
    pub fn made_for_the_rewrite<'v>(&mut self, values: impl IntoIterator<Item = &'v String>) {
        self.values.extend(values.into_iter().cloned());
    }

    /// The live values of `graph` if the values in `also` count as read as well.
    fn reached_from(graph: &GraphProto, also: &HashSet<String>) -> Self {
        let mut producers: HashMap<&str, usize> = HashMap::new();
        let mut all = HashSet::new();
        for (index, node) in graph.node.iter().enumerate() {
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                producers.insert(output, index);
                all.insert(output.clone());
            }
        }
        all.extend(graph.initializer.iter().map(|t| t.name().to_owned()));
        let mut values: HashSet<&str> = HashSet::new();
        let mut open: Vec<&str> = graph.output.iter().map(|o| o.name()).collect();
        open.extend(also.iter().map(String::as_str));
        while let Some(value) = open.pop() {
            if !values.insert(value) {
                continue;
            }
            let Some(node) = producers.get(value).and_then(|&i| graph.node.get(i)) else {
                continue;
            };
            open.extend(
                node.input
                    .iter()
                    .filter(|i| !i.is_empty())
                    .map(String::as_str),
            );
            open.extend(subgraphs(node).flat_map(captured));
        }
        Self {
            values: values.into_iter().map(str::to_owned).collect(),
            all,
        }
    }

    /// The outputs of nodes and the initializers that are not live.
    fn dead(&self) -> HashSet<String> {
        self.all.difference(&self.values).cloned().collect()
    }
}

/// Removes nodes, initializers, value descriptions and annotations that have lost their last reader since `before`.
pub fn cleanup(graph: &mut GraphProto, before: &Live) {
    // Values that were dead in the exported graph are kept, together with the values that they are computed from.
    let now = Live::reached_from(graph, &before.dead());
    let keep = |value: &str| now.values.contains(value);
    graph.node.retain(|node| {
        node.output.is_empty() || node.output.iter().any(|o| !o.is_empty() && keep(o))
    });
    let inputs: HashSet<String> = graph.input.iter().map(|i| i.name().to_owned()).collect();
    graph
        .initializer
        .retain(|t| keep(t.name()) || inputs.contains(t.name()));
    let mut made: HashSet<&str> = graph
        .node
        .iter()
        .flat_map(|n| n.output.iter().map(String::as_str))
        .collect();
    made.extend(graph.initializer.iter().map(|t| t.name()));
    made.extend(inputs.iter().map(String::as_str));
    // A `value_info` entry for a value that never existed was written by the exporter and is kept.
    let gone = |name: &str| before.all.contains(name) && !made.contains(name);
    graph.value_info.retain(|info| !gone(info.name()));
    graph
        .quantization_annotation
        .retain(|a| !gone(a.tensor_name()));
}
