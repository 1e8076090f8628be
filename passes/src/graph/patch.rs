//! What a rewrite asks for, and the one function that changes a graph.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::graph::build::{NewSize, reshaped};
use crate::graph::{Graph, NodeId};
use crate::onnx::{GraphProto, NodeProto, TensorProto};

/// Changes to one graph: nodes replaced by nodes, initializers added, values of the interface given another shape.
#[derive(Debug, Clone, Default)]
pub struct Patch {
    /// Node to the nodes that take its place, in order.
    pub replaced: BTreeMap<NodeId, Vec<NodeProto>>,
    /// New initializers.
    pub initializers: Vec<TensorProto>,
    /// New shapes of graph inputs and outputs; the names stay.
    pub interface: BTreeMap<String, Vec<NewSize>>,
}

/// A patch that does not fit its graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// Two rewrites claim one node.
    #[error("two rewrites replace node {0}")]
    Overlap(usize),
    /// A value that others read would no longer be made.
    #[error("the replacement of node '{node}' no longer makes '{value}', which is read elsewhere")]
    Lost {
        /// Label of the replaced node.
        node: String,
        /// The value.
        value: String,
    },
    /// A new name is taken.
    #[error("the new name '{0}' is already taken")]
    Taken(String),
    /// A new shape for a value that is not part of the interface.
    #[error("'{0}' is neither an input nor an output of the graph")]
    NoInterface(String),
}

impl Patch {
    /// Adds the changes of `other`, a rewrite of other nodes.
    pub fn merge(&mut self, other: Self) -> Result<(), PatchError> {
        for (id, nodes) in other.replaced {
            if self.replaced.insert(id, nodes).is_some() {
                return Err(PatchError::Overlap(id.0));
            }
        }
        for tensor in other.initializers {
            // Shape vectors are named by their content, so layers share them.
            if !self.initializers.iter().any(|t| t.name() == tensor.name()) {
                self.initializers.push(tensor);
            }
        }
        self.interface.extend(other.interface);
        Ok(())
    }

    /// Adds initializers that are not there yet: those named by their content are shared.
    pub fn add_initializers(&mut self, tensors: Vec<TensorProto>) {
        for tensor in tensors {
            let known = self.initializers.iter().any(|t| t.name() == tensor.name());
            if !known {
                self.initializers.push(tensor);
            }
        }
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.replaced.is_empty() && self.initializers.is_empty() && self.interface.is_empty()
    }
}

/// Applies `patch`, after checking that every value that is still read is still made and no name is made twice.
pub fn apply(patch: Patch, proto: &mut GraphProto) -> Result<(), PatchError> {
    check(&patch, proto)?;
    let Patch {
        mut replaced,
        initializers,
        interface,
    } = patch;
    let old = std::mem::take(&mut proto.node);
    proto.node = Vec::with_capacity(old.len());
    for (index, node) in old.into_iter().enumerate() {
        match replaced.remove(&NodeId(index)) {
            Some(nodes) => proto.node.extend(nodes),
            None => proto.node.push(node),
        }
    }
    proto.initializer.extend(initializers);
    for info in proto.input.iter_mut().chain(&mut proto.output) {
        if let Some(dims) = interface.get(info.name()) {
            *info = reshaped(info, dims);
        }
    }
    // Exporters repeat the interface here; a stale copy would contradict it.
    proto
        .value_info
        .retain(|info| !interface.contains_key(info.name()));
    Ok(())
}

fn check(patch: &Patch, proto: &GraphProto) -> Result<(), PatchError> {
    let graph = Graph::new(proto);
    let mut made: HashMap<&str, NodeId> = HashMap::new();
    for (id, nodes) in &patch.replaced {
        for output in nodes
            .iter()
            .flat_map(|n| &n.output)
            .filter(|o| !o.is_empty())
        {
            let taken = match graph.producer(output) {
                Some((old, _)) => !patch.replaced.contains_key(&old),
                None => graph.initializer(output).is_some() || graph.input(output).is_some(),
            };
            if taken || made.insert(output, *id).is_some() {
                return Err(PatchError::Taken(output.clone()));
            }
        }
    }
    for id in patch.replaced.keys() {
        let Some(node) = graph.node(*id) else {
            continue;
        };
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            let read = graph.is_output(output)
                || graph
                    .uses(output)
                    .iter()
                    .any(|u| !patch.replaced.contains_key(&u.node));
            if read && !made.contains_key(output.as_str()) {
                return Err(PatchError::Lost {
                    node: crate::graph::label(node).to_owned(),
                    value: output.clone(),
                });
            }
        }
    }
    let mut names = HashSet::new();
    for tensor in &patch.initializers {
        let name = tensor.name();
        let taken = graph.initializer(name).is_some()
            || graph.input(name).is_some()
            || graph.producer(name).is_some();
        if taken || made.contains_key(name) || !names.insert(name) {
            return Err(PatchError::Taken(name.to_owned()));
        }
    }
    for name in patch.interface.keys() {
        if graph.input(name).is_none() && !graph.is_output(name) {
            return Err(PatchError::NoInterface(name.clone()));
        }
    }
    Ok(())
}
