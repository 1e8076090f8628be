//! A patch: the changes that a rewrite makes to one graph, as a value. [`apply`] is the only function that changes a
//! graph.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::graph::build::{NewType, retyped};
use crate::graph::{Graph, NodeId, is_op, order, subgraphs};
use crate::onnx::{GraphProto, NodeProto, TensorProto};

/// The changes to one graph: replaced nodes, new initializers, and new types and shapes of graph inputs and outputs.
#[derive(Debug, Clone, Default)]
pub struct Patch {
    /// New nodes before all others, in order. They read only graph inputs, initializers and each other. Patches that
    /// contain a node of the same name share it.
    pub front: Vec<NodeProto>,
    /// Each replaced node with its replacements, in order.
    pub replaced: BTreeMap<NodeId, Vec<NodeProto>>,
    /// New initializers.
    pub initializers: Vec<TensorProto>,
    /// New types and shapes of graph inputs and outputs; the names stay.
    pub interface: BTreeMap<String, NewType>,
    /// Values whose shape changes: their `value_info` entries are removed.
    pub stale: BTreeSet<String>,
}

/// A patch that does not fit its graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// Two rewrites replace the same node.
    #[error("two rewrites replace node {0}")]
    Overlap(usize),
    /// A value that remaining nodes read would have no producer.
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
    /// A new shape is given for a value that is neither an input nor an output of the graph.
    #[error("'{0}' is neither an input nor an output of the graph")]
    NoInterface(String),
}

impl Patch {
    /// Adds the changes of `other`, which must not replace the same nodes.
    pub fn merge(&mut self, other: Self) -> Result<(), PatchError> {
        for (id, nodes) in other.replaced {
            if self.replaced.insert(id, nodes).is_some() {
                return Err(PatchError::Overlap(id.0));
            }
        }
        other
            .front
            .into_iter()
            .for_each(|node| self.add_front(node));
        // Shape vectors are named by their content, so layers share them.
        self.add_initializers(other.initializers);
        self.interface.extend(other.interface);
        self.stale.extend(other.stale);
        Ok(())
    }

    /// The first outputs of the `If` nodes of the patch, and of those in their branches.
    pub fn choices(&self) -> HashSet<String> {
        let mut open: Vec<&NodeProto> = self.replaced.values().flatten().collect();
        let mut outputs = HashSet::new();
        while let Some(node) = open.pop() {
            if is_op(node, "If") {
                outputs.extend(node.output.first().cloned());
                open.extend(subgraphs(node).flat_map(|branch| &branch.node));
            }
        }
        outputs
    }

    /// Leaves to `other` the nodes that both replace.
    pub fn leave_what(&mut self, other: &Self) {
        self.replaced
            .retain(|id, _| !other.replaced.contains_key(id));
    }

    /// Adds the initializers whose name is not in the patch yet. Initializers that are named by their content are
    /// shared.
    pub fn add_initializers(&mut self, tensors: Vec<TensorProto>) {
        for tensor in tensors {
            let known = self.initializers.iter().any(|t| t.name() == tensor.name());
            if !known {
                self.initializers.push(tensor);
            }
        }
    }

    /// Adds a node before all others, unless the patch has a node of that name there.
    pub fn add_front(&mut self, node: NodeProto) {
        if !self.front.iter().any(|n| n.name() == node.name()) {
            self.front.push(node);
        }
    }

    /// Whether the patch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.replaced.is_empty()
            && self.front.is_empty()
            && self.initializers.is_empty()
            && self.interface.is_empty()
    }
}

/// Applies `patch` after checking that every value that is read has a producer and that no name is defined twice.
pub fn apply(patch: Patch, proto: &mut GraphProto) -> Result<(), PatchError> {
    check(&patch, proto)?;
    let Patch {
        front,
        mut replaced,
        initializers,
        interface,
        stale,
    } = patch;
    let old = std::mem::take(&mut proto.node);
    proto.node = front;
    proto.node.reserve(old.len());
    for (index, node) in old.into_iter().enumerate() {
        match replaced.remove(&NodeId(index)) {
            Some(nodes) => proto.node.extend(nodes),
            None => proto.node.push(node),
        }
    }
    proto.initializer.extend(initializers);
    for info in proto.input.iter_mut().chain(&mut proto.output) {
        if let Some(new) = interface.get(info.name()) {
            *info = retyped(info, new);
        }
    }
    // Exporters repeat graph inputs and outputs in `value_info`; an entry with the old shape would contradict the new
    // one.
    proto
        .value_info
        .retain(|info| !interface.contains_key(info.name()) && !stale.contains(info.name()));
    // A replacement may read what is computed behind the node that it replaces.
    order::sort(proto);
    Ok(())
}

fn check(patch: &Patch, proto: &GraphProto) -> Result<(), PatchError> {
    let graph = Graph::new(proto);
    let mut made: HashSet<&str> = HashSet::new();
    let nodes = patch.front.iter().chain(patch.replaced.values().flatten());
    for output in nodes.flat_map(|n| &n.output).filter(|o| !o.is_empty()) {
        let taken = match graph.producer(output) {
            Some((old, _)) => !patch.replaced.contains_key(&old),
            None => graph.initializer(output).is_some() || graph.input(output).is_some(),
        };
        if taken || !made.insert(output) {
            return Err(PatchError::Taken(output.clone()));
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
            if read && !made.contains(output.as_str()) {
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
        if taken || made.contains(name) || !names.insert(name) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::graph::build::{NewSize, int64_vector, node, value};
    use crate::graph::text;

    /// x -> Neg -> a -> Abs -> y
    fn chain() -> GraphProto {
        GraphProto {
            input: vec![value("x", 1, &[2])],
            node: vec![
                node("Neg", "neg", &["x"], &["a"]),
                node("Abs", "abs", &["a"], &["y"]),
            ],
            output: vec![value("y", 1, &[2])],
            ..GraphProto::default()
        }
    }

    fn replacing(id: usize, nodes: Vec<NodeProto>) -> Patch {
        Patch {
            replaced: BTreeMap::from([(NodeId(id), nodes)]),
            ..Patch::default()
        }
    }

    #[test]
    fn nodes_take_the_place_of_the_one_they_replace() {
        let mut graph = chain();
        let mut patch = replacing(
            0,
            vec![
                node("Exp", "exp", &["x"], &["e"]),
                node("Log", "log", &["e"], &["a"]),
            ],
        );
        patch
            .interface
            .insert("y".to_owned(), vec![NewSize::Fixed(3)].into());
        apply(patch, &mut graph).unwrap();
        let lines = text::graph(&graph);
        let expected = [
            "input x: float[2]",
            "e = Exp(x)",
            "a = Log(e)",
            "y = Abs(a)",
            "output y: float[3]",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn nodes_in_front_are_shared_by_their_names() {
        let front = || Patch {
            front: vec![node("Shape", "shape", &["x"], &["shape"])],
            ..Patch::default()
        };
        let mut patch = front();
        patch.merge(front()).unwrap();
        let mut graph = chain();
        apply(patch, &mut graph).unwrap();
        assert_eq!(text::graph(&graph)[1], "shape = Shape(x)");
        assert_eq!(graph.node.len(), 3);
        let again = apply(front(), &mut graph).unwrap_err();
        assert_eq!(again, PatchError::Taken("shape".to_owned()));
    }

    #[test]
    fn a_patch_that_does_not_fit_changes_nothing() {
        let lost = replacing(0, vec![node("Exp", "exp", &["x"], &["e"])]);
        let twice = replacing(0, vec![node("Exp", "exp", &["x"], &["y"])]);
        let named = Patch {
            initializers: vec![int64_vector("x", &[1])],
            ..Patch::default()
        };
        let inner = Patch {
            interface: BTreeMap::from([("a".to_owned(), vec![NewSize::Keep].into())]),
            ..Patch::default()
        };
        let cases = [
            (
                lost,
                "the replacement of node 'neg' no longer makes 'a', which is read elsewhere",
            ),
            (twice, "the new name 'y' is already taken"),
            (named, "the new name 'x' is already taken"),
            (inner, "'a' is neither an input nor an output of the graph"),
        ];
        for (patch, message) in cases {
            let mut graph = chain();
            assert_eq!(apply(patch, &mut graph).unwrap_err().to_string(), message);
            assert_eq!(graph, chain());
        }
    }

    #[test]
    fn two_rewrites_of_one_node_do_not_merge() {
        let mut one = replacing(1, vec![node("Exp", "exp", &["a"], &["y"])]);
        let other = replacing(1, vec![node("Log", "log", &["a"], &["y"])]);
        assert_eq!(one.merge(other), Err(PatchError::Overlap(1)));
    }
}
