//! Inlines model-local functions that contain attention.
//!
//! All calls of a function share one body, and each call has its own weights and KV cache, so an attention can only be
//! rewritten after its body has been copied to each call. Functions without attention are not inlined.

use std::collections::{HashMap, HashSet};

use crate::graph::functions::{Functions, Key, called};
use crate::graph::label;
use crate::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
};

/// A model's main graph after inlining.
#[derive(Debug, Clone)]
pub struct Inlined {
    /// The main graph.
    pub graph: GraphProto,
    /// The functions that the graph no longer calls.
    pub functions: HashSet<Key>,
    /// Operator sets that the inlined bodies need and that the model does not import.
    pub imports: Vec<OperatorSetIdProto>,
}

/// Inlines the functions of `model` that [`Functions::of`] selects; `None` if it selects none. `is_attention` tells
/// whether a node is an attention operator.
pub fn inline(model: &ModelProto, is_attention: &dyn Fn(&NodeProto) -> bool) -> Option<Inlined> {
    let functions = Functions::of(model, is_attention);
    if functions.inlined.is_empty() {
        return None;
    }
    let mut graph = model.graph.clone()?;
    graph.node = expand(&functions, graph.node);
    Some(Inlined {
        graph,
        functions: functions.inlined,
        imports: functions.imports,
    })
}

/// `nodes` with every call replaced by the function's body, recursively. [`Functions::of`] has checked that the result
/// is bounded.
fn expand(functions: &Functions, nodes: Vec<NodeProto>) -> Vec<NodeProto> {
    let mut expanded = Vec::with_capacity(nodes.len());
    for mut node in nodes {
        match functions.to_inline(&called(&node)) {
            Some(function) => expanded.extend(expand(functions, instance(function, &node))),
            None => {
                for graph in node.attribute.iter_mut().filter_map(|a| a.g.as_mut()) {
                    graph.node = expand(functions, std::mem::take(&mut graph.node));
                }
                expanded.push(node);
            }
        }
    }
    expanded
}

/// The nodes of `function` for one `call`: inputs and outputs take the names of the call's, all other values get the
/// call's label as prefix.
fn instance(function: &FunctionProto, call: &NodeProto) -> Vec<NodeProto> {
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

/// An attribute of a node of the body with its reference (`ref_attr_name`) resolved: to the value of the call, or else
/// to the default of the function. `None` if neither exists; the operator's own default applies then.
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
