//! The stable text form of a graph, used by the commands `print` and `diff` and by test snapshots. Scalars and short
//! constants are shown with their elements, weights only with their shapes.

use crate::graph::elements::elements;
use crate::numbers::counted;
use crate::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto::dimension,
    type_proto,
};

/// Length of the longest list of integers or floats that is written out.
const LONGEST: usize = 16;

/// Lower-case name of an ONNX element type.
pub fn type_name(elem_type: i32) -> String {
    DataType::try_from(elem_type).map_or_else(
        |_| format!("type{elem_type}"),
        |t| format!("{t:?}").to_lowercase(),
    )
}

/// `outputs = Operator(inputs) {attributes}`.
pub fn node(node: &NodeProto) -> String {
    let operator = match node.domain() {
        "" | "ai.onnx" => node.op_type().to_owned(),
        domain => format!("{domain}.{}", node.op_type()),
    };
    let operator = match node.overload() {
        "" => operator,
        overload => format!("{operator}:{overload}"),
    };
    let mut line = format!("{} = {operator}({})", list(&node.output), list(&node.input));
    if !node.attribute.is_empty() {
        let mut attributes: Vec<String> = node.attribute.iter().map(attribute).collect();
        attributes.sort();
        line.push_str(&format!(" {{{}}}", attributes.join(", ")));
    }
    line
}

fn list(names: &[String]) -> String {
    let shown: Vec<&str> = names
        .iter()
        .map(|n| if n.is_empty() { "_" } else { n })
        .collect();
    shown.join(", ")
}

fn attribute(attribute: &AttributeProto) -> String {
    let value = match AttributeType::try_from(attribute.r#type.unwrap_or(0)) {
        Ok(AttributeType::Float) => format!("{}", attribute.f()),
        Ok(AttributeType::Int) => format!("{}", attribute.i()),
        Ok(AttributeType::String) => format!("{:?}", String::from_utf8_lossy(attribute.s())),
        Ok(AttributeType::Tensor) => attribute
            .t
            .as_ref()
            .map_or_else(|| "tensor".to_owned(), small_tensor),
        Ok(AttributeType::Floats) => numbers(&attribute.floats),
        Ok(AttributeType::Ints) => numbers(&attribute.ints),
        Ok(AttributeType::Strings) => {
            let strings: Vec<_> = attribute
                .strings
                .iter()
                .map(|s| String::from_utf8_lossy(s))
                .collect();
            format!("{strings:?}")
        }
        Ok(AttributeType::Graph) => attribute.g.as_ref().map_or_else(
            || "graph".to_owned(),
            |g| format!("graph of {}", counted(g.node.len(), "node")),
        ),
        Ok(other) => format!("{other:?}").to_lowercase(),
        Err(_) => match attribute.ref_attr_name() {
            "" => "unknown".to_owned(),
            name => format!("@{name}"),
        },
    };
    format!("{}={value}", attribute.name())
}

fn numbers<T: std::fmt::Display>(values: &[T]) -> String {
    if values.len() > LONGEST {
        return format!("[{} numbers]", values.len());
    }
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    format!("[{}]", texts.join(","))
}

/// `type[elements]` of a short constant, `type[sizes]` of any other.
fn small_tensor(tensor: &TensorProto) -> String {
    match elements(tensor) {
        Some(elements) => format!("{}{elements}", type_name(tensor.data_type())),
        None => tensor_type(tensor),
    }
}

fn tensor_type(tensor: &TensorProto) -> String {
    format!("{}{}", type_name(tensor.data_type()), numbers(&tensor.dims))
}

/// `name: type[sizes]`, followed by the elements of a short constant.
pub fn initializer(tensor: &TensorProto) -> String {
    let mut line = format!("{}: {}", tensor.name(), tensor_type(tensor));
    if let Some(elements) = elements(tensor) {
        line.push_str(&format!(" = {elements}"));
    }
    line
}

/// `name: type[sizes]` of an input, an output or an inner value.
pub fn value(info: &ValueInfoProto) -> String {
    format!(
        "{}: {}",
        info.name(),
        info.r#type
            .as_ref()
            .map_or_else(|| "?".to_owned(), value_type)
    )
}

fn value_type(kind: &TypeProto) -> String {
    match &kind.value {
        Some(type_proto::Value::TensorType(tensor)) => {
            let dims = tensor.shape.as_ref().map(|shape| {
                let dims: Vec<String> = shape
                    .dim
                    .iter()
                    .map(|dim| match &dim.value {
                        Some(dimension::Value::DimValue(n)) => n.to_string(),
                        Some(dimension::Value::DimParam(s)) => s.clone(),
                        None => "?".to_owned(),
                    })
                    .collect();
                dims.join(", ")
            });
            match dims {
                Some(dims) => format!("{}[{dims}]", type_name(tensor.elem_type())),
                None => type_name(tensor.elem_type()),
            }
        }
        Some(type_proto::Value::SequenceType(_)) => "sequence".to_owned(),
        Some(type_proto::Value::MapType(_)) => "map".to_owned(),
        Some(type_proto::Value::OptionalType(_)) => "optional".to_owned(),
        Some(type_proto::Value::SparseTensorType(_)) => "sparse tensor".to_owned(),
        Some(_) => "opaque".to_owned(),
        None => "?".to_owned(),
    }
}

/// The lines of the header: IR version, producer, opsets, metadata keys.
pub fn header(model: &ModelProto) -> Vec<String> {
    let mut lines = vec![format!("ir_version {}", model.ir_version())];
    if !model.producer_name().is_empty() {
        lines.push(
            format!(
                "producer {} {}",
                model.producer_name(),
                model.producer_version()
            )
            .trim_end()
            .to_owned(),
        );
    }
    for opset in &model.opset_import {
        let domain = if opset.domain().is_empty() {
            "ai.onnx"
        } else {
            opset.domain()
        };
        lines.push(format!("opset {domain} {}", opset.version()));
    }
    for property in &model.metadata_props {
        lines.push(format!("metadata {}", property.key()));
    }
    for function in &model.functions {
        lines.push(format!(
            "function {}.{} of {}",
            function.domain(),
            function.name(),
            counted(function.node.len(), "node")
        ));
    }
    lines
}

/// The lines of a graph: inputs, initializers, nodes, outputs. Subgraphs follow their node, indented.
pub fn graph(graph: &GraphProto) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(graph.input.iter().map(|v| format!("input {}", value(v))));
    lines.extend(
        graph
            .initializer
            .iter()
            .map(|t| format!("initializer {}", initializer(t))),
    );
    for one in &graph.node {
        lines.push(node(one));
        for body in crate::graph::subgraphs(one) {
            lines.extend(
                self::graph(body)
                    .into_iter()
                    .map(|line| format!("    {line}")),
            );
        }
    }
    lines.extend(graph.output.iter().map(|v| format!("output {}", value(v))));
    lines
}

/// The nodes of layer `layer`: from the first to the last node whose name or metadata contains the layer's number, as
/// in `layers.3`. A node without a name is judged by its first output.
pub fn layer(graph: &GraphProto, layer: usize) -> Vec<String> {
    let belongs = |node: &NodeProto| {
        let scopes = node.metadata_props.iter().map(|p| p.value());
        // Only unnamed nodes are judged by their output: an alias node of a weight has an output named after its layer
        // and may stand far away from that layer.
        let output = node.output.first().map_or("", String::as_str);
        let name = if node.name().is_empty() {
            output
        } else {
            node.name()
        };
        scopes.chain([name]).any(|text| names_layer(text, layer))
    };
    let first = graph.node.iter().position(belongs);
    let last = graph.node.iter().rposition(belongs);
    match (first, last) {
        (Some(first), Some(last)) => graph
            .node
            .get(first..=last)
            .unwrap_or_default()
            .iter()
            .map(node)
            .collect(),
        _ => Vec::new(),
    }
}

/// Whether `text` holds a path such as `layers.3` or `h.3`, as module names do.
fn names_layer(text: &str, layer: usize) -> bool {
    let wanted = layer.to_string();
    let mut parts = text.split(['/', '.', '\'', ' ', '_']).peekable();
    while let Some(part) = parts.next() {
        if matches!(part, "layers" | "layer" | "h" | "blocks" | "block")
            && parts.peek().is_some_and(|next| **next == wanted)
        {
            return true;
        }
    }
    false
}
