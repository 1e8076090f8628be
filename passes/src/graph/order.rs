//! Topological sorting of nodes. ONNX requires sorted nodes, but ONNX Runtime accepts any order, and its tools write
//! unsorted files.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::graph::{captured, subgraphs};
use crate::onnx::GraphProto;

/// Sorts the nodes of `graph` and of its subgraphs topologically. A sorted graph does not change. A graph with a cycle
/// does not change either; [`crate::graph::verify`] refuses it.
pub fn sort(graph: &mut GraphProto) {
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        attribute.g.iter_mut().for_each(sort);
        attribute.graphs.iter_mut().for_each(sort);
    }
    let order = topological(graph);
    let sorted = order.windows(2).all(|pair| pair.first() < pair.last());
    if sorted || order.len() != graph.node.len() {
        return;
    }
    let mut place = vec![0; order.len()];
    for (at, &node) in order.iter().enumerate() {
        if let Some(slot) = place.get_mut(node) {
            *slot = at;
        }
    }
    let nodes = std::mem::take(&mut graph.node);
    let mut placed: Vec<_> = place.into_iter().zip(nodes).collect();
    placed.sort_by_key(|(at, _)| *at);
    graph.node = placed.into_iter().map(|(_, node)| node).collect();
}

/// The positions of the nodes in topological order, ties broken by position. If the graph has a cycle, the list is
/// shorter than the graph.
fn topological(graph: &GraphProto) -> Vec<usize> {
    let mut makers: HashMap<&str, usize> = HashMap::new();
    for (at, node) in graph.node.iter().enumerate() {
        let made = node.output.iter().filter(|o| !o.is_empty());
        makers.extend(made.map(|output| (output.as_str(), at)));
    }
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); graph.node.len()];
    let mut missing = vec![0usize; graph.node.len()];
    for (at, (node, missing)) in graph.node.iter().zip(&mut missing).enumerate() {
        let own = node.input.iter().map(String::as_str);
        for value in own.chain(subgraphs(node).flat_map(captured)) {
            let made_by = makers.get(value).and_then(|maker| readers.get_mut(*maker));
            if let Some(readers) = made_by {
                readers.push(at);
                *missing += 1;
            }
        }
    }
    let ready = missing.iter().enumerate().filter(|(_, m)| **m == 0);
    let mut ready: BinaryHeap<_> = ready.map(|(at, _)| Reverse(at)).collect();
    let mut order = Vec::with_capacity(graph.node.len());
    while let Some(Reverse(at)) = ready.pop() {
        order.push(at);
        for &reader in readers.get(at).into_iter().flatten() {
            let Some(left) = missing.get_mut(reader) else {
                continue;
            };
            *left -= 1;
            if *left == 0 {
                ready.push(Reverse(reader));
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::sort;
    use crate::graph::build::node;
    use crate::onnx::GraphProto;

    fn sorted(nodes: [(&str, &[&str], &str); 4]) -> Vec<String> {
        let made = nodes.map(|(op, reads, makes)| node(op, op, reads, &[makes]));
        let mut graph = GraphProto {
            node: made.to_vec(),
            ..GraphProto::default()
        };
        sort(&mut graph);
        graph.node.iter().map(|n| n.op_type().to_owned()).collect()
    }

    #[test]
    fn a_node_moves_behind_what_it_reads_and_the_others_keep_their_order() {
        let found = sorted([
            ("Add", &["n", "x"], "a"),
            ("Exp", &["x"], "e"),
            ("Neg", &["x"], "n"),
            ("Mul", &["a", "e"], "m"),
        ]);
        assert_eq!(found, ["Exp", "Neg", "Add", "Mul"]);
    }

    #[test]
    fn a_cycle_stays_for_the_verifier_to_refuse() {
        let found = sorted([
            ("Add", &["m", "x"], "a"),
            ("Exp", &["x"], "e"),
            ("Neg", &["x"], "n"),
            ("Mul", &["a", "e"], "m"),
        ]);
        assert_eq!(found, ["Add", "Exp", "Neg", "Mul"]);
    }
}
