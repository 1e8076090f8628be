//! A read-only index of one ONNX graph: the producer and the readers of each value.

mod arity;
pub mod build;
pub mod cleanup;
pub mod elements;
pub mod functions;
pub mod inline;
pub mod order;
pub mod patch;
pub mod rename;
pub mod scopes;
pub mod sink;
pub mod text;
pub mod verify;
pub mod weight;

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;

use crate::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};

/// A map with value names as keys. Exporters write long names and each node needs about ten lookups; with the standard
/// library's hasher, hashing would take a third of the time to read a graph.
pub type ByName<K, V> = HashMap<K, V, RandomState>;

/// Position of a node in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

/// One read of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// The node that reads the value.
    pub node: NodeId,
    /// Position among the node's inputs; `None` if a subgraph of the node captures the value.
    pub input: Option<usize>,
}

/// An index of a [`GraphProto`], built once in linear time.
#[derive(Debug)]
pub struct Graph<'a> {
    proto: &'a GraphProto,
    producers: ByName<&'a str, NodeId>,
    uses: ByName<&'a str, Vec<Use>>,
    initializers: ByName<&'a str, &'a TensorProto>,
    inputs: ByName<&'a str, &'a ValueInfoProto>,
    outputs: HashSet<&'a str>,
    /// Values that subgraphs define, at any depth.
    inner: HashSet<&'a str>,
    outer: Option<&'a Graph<'a>>,
}

impl<'a> Graph<'a> {
    /// Indexes `proto`.
    pub fn new(proto: &'a GraphProto) -> Self {
        let count = proto.node.len();
        let mut producers = ByName::with_capacity_and_hasher(count, RandomState::default());
        let mut uses: ByName<&str, Vec<Use>> =
            ByName::with_capacity_and_hasher(count, RandomState::default());
        let mut inner = HashSet::new();
        for (index, node) in proto.node.iter().enumerate() {
            let id = NodeId(index);
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                producers.insert(output.as_str(), id);
            }
            for (position, input) in node.input.iter().enumerate() {
                if !input.is_empty() {
                    uses.entry(input).or_default().push(Use {
                        node: id,
                        input: Some(position),
                    });
                }
            }
            for body in subgraphs(node) {
                inner.extend(defined(body));
                for name in captured(body) {
                    uses.entry(name).or_default().push(Use {
                        node: id,
                        input: None,
                    });
                }
            }
        }
        Self {
            proto,
            producers,
            uses,
            initializers: proto.initializer.iter().map(|t| (t.name(), t)).collect(),
            inputs: proto.input.iter().map(|v| (v.name(), v)).collect(),
            outputs: proto.output.iter().map(|v| v.name()).collect(),
            inner,
            outer: None,
        }
    }

    /// Indexes `proto`, a subgraph of a node of `outer`, which may capture values of `outer`.
    pub fn within(proto: &'a GraphProto, outer: &'a Graph<'a>) -> Self {
        Self {
            outer: Some(outer),
            ..Self::new(proto)
        }
    }

    /// The indexed graph.
    pub fn proto(&self) -> &'a GraphProto {
        self.proto
    }

    /// All nodes with their ids, in graph order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &'a NodeProto)> + use<'a> {
        self.proto
            .node
            .iter()
            .enumerate()
            .map(|(i, node)| (NodeId(i), node))
    }

    /// The node `id`, if this graph has it.
    pub fn node(&self, id: NodeId) -> Option<&'a NodeProto> {
        self.proto.node.get(id.0)
    }

    /// The node that makes `value`; `None` for inputs, initializers and captured values.
    pub fn producer(&self, value: &str) -> Option<(NodeId, &'a NodeProto)> {
        let id = *self.producers.get(value)?;
        Some((id, self.node(id)?))
    }

    /// Every read of `value`, captured reads included.
    pub fn uses(&self, value: &str) -> &[Use] {
        self.uses.get(value).map_or(&[], Vec::as_slice)
    }

    /// The initializer `value` of this graph or of an enclosing one.
    pub fn initializer(&self, value: &str) -> Option<&'a TensorProto> {
        let own = self.initializers.get(value).copied();
        own.or_else(|| self.around(value)?.initializer(value))
    }

    /// The graph input `value` of this graph or of an enclosing one, unless an initializer gives it a default.
    pub fn input(&self, value: &str) -> Option<&'a ValueInfoProto> {
        if self.initializers.contains_key(value) {
            return None;
        }
        let own = self.inputs.get(value).copied();
        own.or_else(|| self.around(value)?.input(value))
    }

    /// Names of the inputs of this graph and of the enclosing graphs.
    pub fn reachable_inputs(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let graphs = std::iter::successors(Some((self.proto, self.outer)), |(_, outer)| {
            outer.map(|graph| (graph.proto, graph.outer))
        });
        graphs.flat_map(|(proto, _)| proto.input.iter().map(ValueInfoProto::name))
    }

    /// The enclosing graph, if no node of this graph makes `value`.
    fn around(&self, value: &str) -> Option<&'a Graph<'a>> {
        self.outer.filter(|_| !self.producers.contains_key(value))
    }

    /// Whether a node of an enclosing graph makes `value`.
    pub fn is_made_outside(&self, value: &str) -> bool {
        self.around(value)
            .is_some_and(|outer| outer.producer(value).is_some() || outer.is_made_outside(value))
    }

    /// Whether `value` is an input of this graph or of an enclosing one; inputs with a default count.
    pub fn is_reachable_input(&self, value: &str) -> bool {
        self.reachable_inputs().any(|input| input == value)
    }

    /// Whether `value` is an input of this graph itself, not of an enclosing one.
    pub fn is_own_input(&self, value: &str) -> bool {
        self.inputs.contains_key(value)
    }

    /// Whether `value` is an output of this graph.
    pub fn is_output(&self, value: &str) -> bool {
        self.outputs.contains(value)
    }

    /// Whether this graph, an enclosing graph or a subgraph has a value called `name`.
    pub fn is_taken(&self, name: &str) -> bool {
        let own = self.producers.contains_key(name)
            || self.initializers.contains_key(name)
            || self.inputs.contains_key(name)
            || self.inner.contains(name);
        own || self.outer.is_some_and(|outer| outer.is_taken(name))
    }

    /// The value that `value` is an alias of, through any number of alias nodes (see [`is_alias`]).
    pub fn resolve<'v>(&self, value: &'v str) -> &'v str
    where
        'a: 'v,
    {
        let mut current: &'v str = value;
        // Sorted graphs have no cycle; the bound stops at a cycle in a malformed graph.
        for _ in 0..=self.proto.node.len() {
            match self.producer(current) {
                Some((_, node)) if is_alias(node) => match node.input.first() {
                    Some(input) => current = input,
                    None => return current,
                },
                _ => return current,
            }
        }
        current
    }
}

/// Whether `node` returns its input unchanged: `Identity`, or `Concat` of a single input.
pub fn is_alias(node: &NodeProto) -> bool {
    is_op(node, "Identity") || (is_op(node, "Concat") && node.input.len() == 1)
}

/// `value` and its aliases in `graph`, each after the value that it is an alias of.
pub fn aliases<'g>(graph: &'g GraphProto, value: &'g str) -> Vec<&'g str> {
    let mut names = vec![value];
    for node in graph.node.iter().filter(|node| is_alias(node)) {
        let (from, to) = (input_at(node, 0), output_at(node, 0));
        if let (Some(to), true) = (to, from.is_some_and(|from| names.contains(&from))) {
            names.push(to);
        }
    }
    names
}

/// Whether `node` is an operator of the default ONNX domain.
pub fn is_standard(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx")
}

/// Whether `node` is operator `op` of the default ONNX domain.
pub fn is_op(node: &NodeProto, op: &str) -> bool {
    node.op_type() == op && is_standard(node)
}

/// Whether `node` is operator `op` of the `com.microsoft` domain.
pub fn is_contrib(node: &NodeProto, op: &str) -> bool {
    node.op_type() == op && node.domain() == "com.microsoft"
}

/// The attribute `name` of `node`.
pub fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|a| a.name() == name)
}

/// Integer attribute, or `default` where it is absent.
pub fn int_attribute(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, |a| a.i())
}

/// Float attribute, or `default` where it is absent.
pub fn float_attribute(node: &NodeProto, name: &str, default: f32) -> f32 {
    attribute(node, name).map_or(default, |a| a.f())
}

/// The value at input `position` of `node`; `None` if that input is omitted.
pub fn input_at(node: &NodeProto, position: usize) -> Option<&str> {
    node.input
        .get(position)
        .map(String::as_str)
        .filter(|name| !name.is_empty())
}

/// The value at output `position` of `node`; `None` if that output is omitted.
pub fn output_at(node: &NodeProto, position: usize) -> Option<&str> {
    node.output
        .get(position)
        .map(String::as_str)
        .filter(|name| !name.is_empty())
}

/// The name of `node` in messages: its own, or that of its first output if it has none.
pub fn label(node: &NodeProto) -> &str {
    match node.name() {
        "" => node
            .output
            .iter()
            .find(|o| !o.is_empty())
            .map_or("", String::as_str),
        name => name,
    }
}

/// The subgraphs of `node` (`If`, `Loop`, `Scan`), which its attributes hold.
pub fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute
        .iter()
        .flat_map(|a| a.g.iter().chain(a.graphs.iter()))
}

/// Names of the values that `body` and its subgraphs define.
fn defined(body: &GraphProto) -> Vec<&str> {
    let mut names: Vec<&str> = body.input.iter().map(|v| v.name()).collect();
    names.extend(body.initializer.iter().map(|t| t.name()));
    for node in &body.node {
        names.extend(node.output.iter().map(String::as_str));
        names.extend(subgraphs(node).flat_map(defined));
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Names of the values of enclosing graphs that `body` and its subgraphs read.
pub fn captured(body: &GraphProto) -> Vec<&str> {
    let mut defined: HashSet<&str> = HashSet::new();
    defined.extend(body.input.iter().map(|v| v.name()));
    defined.extend(body.initializer.iter().map(|t| t.name()));
    defined.extend(
        body.node
            .iter()
            .flat_map(|n| n.output.iter().map(String::as_str)),
    );
    let mut seen = HashSet::new();
    let own = body
        .node
        .iter()
        .flat_map(|n| n.input.iter().map(String::as_str));
    let inner = body
        .node
        .iter()
        .flat_map(|n| subgraphs(n).flat_map(captured));
    let results = body.output.iter().map(|v| v.name());
    own.chain(inner)
        .chain(results)
        .filter(|name| !name.is_empty() && !defined.contains(name) && seen.insert(*name))
        .collect()
}
