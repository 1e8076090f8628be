//! Other names for values.

use std::collections::{HashMap, HashSet};

use crate::graph::{Graph, captured};
use crate::onnx::{GraphProto, NodeProto, ValueInfoProto};

/// Renames values of the nodes of `graph`, and drops what is declared of them.
pub fn rename(graph: &mut GraphProto, names: &HashMap<String, String>) {
    for node in &mut graph.node {
        for value in &mut node.output {
            exchange(value, names);
        }
        rename_reads(node, names);
    }
    let is_new = |name: &str| names.values().any(|new| new == name);
    let is_known = |info: &ValueInfoProto| !names.contains_key(info.name()) && !is_new(info.name());
    graph.value_info.retain(is_known);
}

/// Renames the values that `node` and its subgraphs read.
pub fn rename_reads(node: &mut NodeProto, names: &HashMap<String, String>) {
    for value in &mut node.input {
        exchange(value, names);
    }
    for attribute in &mut node.attribute {
        for body in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            // What the subgraph defines itself is another value.
            let outer: HashSet<String> = captured(body).into_iter().map(str::to_owned).collect();
            let seen = names.iter().filter(|(name, _)| outer.contains(*name));
            let seen = seen
                .map(|(name, new)| (name.clone(), new.clone()))
                .collect();
            body.node
                .iter_mut()
                .for_each(|node| rename_reads(node, &seen));
            for output in &mut body.output {
                if let Some(name) = &mut output.name {
                    exchange(name, &seen);
                }
            }
        }
    }
}

fn exchange(value: &mut String, names: &HashMap<String, String>) {
    if let Some(name) = names.get(value) {
        value.clone_from(name);
    }
}

/// A name that begins with `name` and that `graph` does not have yet.
pub fn free(graph: &Graph, name: &str) -> String {
    let mut name = name.to_owned();
    while graph.is_taken(&name) {
        name.push('+');
    }
    name
}
