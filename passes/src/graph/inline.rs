//! Puts the bodies of model-local functions in place of their calls, where they hold attention.
//!
//! A function is shared by its calls, and each call has its own weights and its own cache, so an attention can only be
//! rewritten where it is called. Functions without attention stay functions.

use std::collections::{HashMap, HashSet};

use crate::graph::{label, subgraphs};
use crate::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
};

/// Deepest nesting of calls that is followed.
const DEEPEST: usize = 32;
/// Most nodes that a graph may grow to.
const MOST_NODES: usize = 1 << 20;

/// The main graph without calls of functions that hold attention, and those functions' keys; `None` where there are none.
pub fn inline(model: &ModelProto) -> Option<(GraphProto, HashSet<Key>)> {
    let functions: HashMap<Key, &FunctionProto> =
        model.functions.iter().map(|f| (key_of(f), f)).collect();
    let attentive = attentive(&functions);
    let opsets = &model.opset_import;
    // A body written for another opset means something else; it stays a function, and is not looked into.
    let inlined: HashSet<Key> = attentive
        .into_iter()
        .filter(|key| functions.get(key).is_some_and(|f| same_opsets(f, opsets)))
        .collect();
    if inlined.is_empty() {
        return None;
    }
    let mut graph = model.graph.clone()?;
    let inliner = Inliner { functions, inlined };
    graph.node = inliner.expand(graph.node, 0)?;
    Some((graph, inliner.inlined))
}

/// What calls name a function by: domain, name, overload.
pub type Key = (String, String, String);

/// The key of `function`.
pub fn key_of(function: &FunctionProto) -> Key {
    (
        function.domain().to_owned(),
        function.name().to_owned(),
        function.overload().to_owned(),
    )
}

/// The key of the function that `node` calls, if it calls one.
pub fn called(node: &NodeProto) -> Key {
    (
        node.domain().to_owned(),
        node.op_type().to_owned(),
        node.overload().to_owned(),
    )
}

/// Functions that hold a softmax or an attention operator, themselves or through the functions they call.
fn attentive(functions: &HashMap<Key, &FunctionProto>) -> HashSet<Key> {
    let direct = |node: &NodeProto| {
        matches!(
            node.op_type(),
            "Softmax" | "Attention" | "GroupQueryAttention" | "MultiHeadAttention"
        )
    };
    let mut found: HashSet<Key> = HashSet::new();
    loop {
        let more: Vec<Key> = functions
            .iter()
            .filter(|(key, f)| {
                !found.contains(*key)
                    && f.node
                        .iter()
                        .any(|n| anywhere(n, &|n| direct(n) || found.contains(&called(n))))
            })
            .map(|(key, _)| key.clone())
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Whether `is` holds for `node` or a node of the graphs inside it.
fn anywhere(node: &NodeProto, is: &dyn Fn(&NodeProto) -> bool) -> bool {
    is(node) || subgraphs(node).any(|graph| graph.node.iter().any(|n| anywhere(n, is)))
}

/// The functions that hold attention and are written for other opsets than the model, which cannot be put in place of
/// their calls.
pub fn foreign(model: &ModelProto) -> HashSet<Key> {
    let functions: HashMap<Key, &FunctionProto> =
        model.functions.iter().map(|f| (key_of(f), f)).collect();
    let stays = |key: &Key| {
        let function = functions.get(key);
        function.is_some_and(|f| !same_opsets(f, &model.opset_import))
    };
    attentive(&functions).into_iter().filter(stays).collect()
}

fn same_opsets(function: &FunctionProto, model: &[OperatorSetIdProto]) -> bool {
    let version = |sets: &[OperatorSetIdProto], domain: &str| {
        let same = |a: &str, b: &str| {
            a == b || (matches!(a, "" | "ai.onnx") && matches!(b, "" | "ai.onnx"))
        };
        sets.iter()
            .find(|o| same(o.domain(), domain))
            .map(|o| o.version())
    };
    function
        .opset_import
        .iter()
        .all(|o| version(model, o.domain()).is_none_or(|v| v == o.version()))
}

struct Inliner<'f> {
    functions: HashMap<Key, &'f FunctionProto>,
    inlined: HashSet<Key>,
}

impl Inliner<'_> {
    /// `nodes` with every call replaced by a body, bodies' own calls included; `None` past the bounds.
    fn expand(&self, nodes: Vec<NodeProto>, depth: usize) -> Option<Vec<NodeProto>> {
        if depth > DEEPEST {
            return None;
        }
        let mut expanded = Vec::with_capacity(nodes.len());
        for node in nodes {
            let key = called(&node);
            match self
                .functions
                .get(&key)
                .filter(|_| self.inlined.contains(&key))
            {
                Some(function) => expanded.extend(self.expand(body(function, &node), depth + 1)?),
                None => expanded.push(self.inside(node, depth)?),
            }
            if expanded.len() > MOST_NODES {
                return None;
            }
        }
        Some(expanded)
    }

    fn inside(&self, mut node: NodeProto, depth: usize) -> Option<NodeProto> {
        for graph in node.attribute.iter_mut().filter_map(|a| a.g.as_mut()) {
            graph.node = self.expand(std::mem::take(&mut graph.node), depth + 1)?;
        }
        Some(node)
    }
}

/// The nodes of `function` for one `call`: its values take the names the call gives them, inner ones a prefix.
fn body(function: &FunctionProto, call: &NodeProto) -> Vec<NodeProto> {
    let prefix = label(call);
    let mut names: HashMap<String, String> = HashMap::new();
    let given = |list: &[String], position: usize| list.get(position).cloned().unwrap_or_default();
    for (position, input) in function.input.iter().enumerate() {
        names.insert(input.clone(), given(&call.input, position));
    }
    for (position, output) in function.output.iter().enumerate() {
        let outside = given(&call.output, position);
        if !outside.is_empty() {
            names.insert(output.clone(), outside);
        }
    }
    function
        .node
        .iter()
        .map(|node| renamed(node, prefix, &names, function, call))
        .collect()
}

fn renamed(
    node: &NodeProto,
    prefix: &str,
    names: &HashMap<String, String>,
    function: &FunctionProto,
    call: &NodeProto,
) -> NodeProto {
    let name = |value: &String| match names.get(value) {
        Some(known) => known.clone(),
        None if value.is_empty() => String::new(),
        None => format!("{prefix}/{value}"),
    };
    let mut node = node.clone();
    node.name = Some(format!("{prefix}/{}", label(&node)));
    node.input = node.input.iter().map(name).collect();
    node.output = node.output.iter().map(name).collect();
    node.attribute = node
        .attribute
        .iter()
        .filter_map(|attribute| resolved(attribute, function, call))
        .map(|mut attribute| {
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                rename_graph(graph, prefix, names, function, call);
            }
            attribute
        })
        .collect();
    node
}

fn rename_graph(
    graph: &mut GraphProto,
    prefix: &str,
    names: &HashMap<String, String>,
    function: &FunctionProto,
    call: &NodeProto,
) {
    let name = |value: &str| match names.get(value) {
        Some(known) => known.clone(),
        None => format!("{prefix}/{value}"),
    };
    graph.node = graph
        .node
        .iter()
        .map(|node| renamed(node, prefix, names, function, call))
        .collect();
    for info in graph
        .input
        .iter_mut()
        .chain(&mut graph.output)
        .chain(&mut graph.value_info)
    {
        info.name = Some(name(info.name()));
    }
    for tensor in &mut graph.initializer {
        tensor.name = Some(name(tensor.name()));
    }
}

/// An attribute of a body's node: one that refers to an attribute of the function takes the call's value, or the
/// default; `None` where there is neither, which leaves the operator its own default.
fn resolved(
    attribute: &AttributeProto,
    function: &FunctionProto,
    call: &NodeProto,
) -> Option<AttributeProto> {
    let wanted = attribute.ref_attr_name();
    if wanted.is_empty() {
        return Some(attribute.clone());
    }
    let find = |list: &[AttributeProto]| list.iter().find(|a| a.name() == wanted).cloned();
    let mut value = find(&call.attribute).or_else(|| find(&function.attribute_proto))?;
    value.name = attribute.name.clone();
    Some(value)
}

/// Whether any node of `graph`, or of a graph inside it, calls the function `key`.
pub fn calls(graph: &GraphProto, key: &Key) -> bool {
    graph
        .node
        .iter()
        .any(|node| called(node) == *key || subgraphs(node).any(|inner| calls(inner, key)))
}
