//! What validation needs to know of a model, read from its messages.

use gqa2mla_passes::graph::{Graph, int_attribute, is_contrib, is_op};
use gqa2mla_passes::onnx::{
    GraphProto, ModelProto, NodeProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto,
};
use gqa2mla_passes::operators::counts_positions;

use crate::validate::ValidateError;
use crate::validate::interface::{Dim, Interface, Port, Role};

/// Token ids are drawn below this where the model does not tell how many it knows.
const SMALL_VOCABULARY: usize = 32;

/// A model as validation sees it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Inputs and outputs with their roles.
    pub interface: Interface,
    /// Number of tokens, as far as the graph tells.
    pub vocabulary: usize,
    /// Whether the graph counts positions from the mask by itself, so that padding has to be on the right.
    pub right_padded_only: bool,
    /// Whether activations are rounded to integers on the way, where a difference in the last digit becomes a step.
    pub rounds_activations: bool,
}

/// Reads the interface of `model`.
pub fn subject(model: &ModelProto) -> Result<Subject, ValidateError> {
    let graph = model
        .graph
        .as_ref()
        .ok_or_else(|| ValidateError::Interface("the model has no graph".to_owned()))?;
    let view = Graph::new(graph);
    let (inputs, outputs) = ports(graph, &view);
    let interface = Interface::of(&inputs, &outputs)?;
    let counts_itself = graph.node.iter().any(counts_positions);
    let rounds = |n: &NodeProto| {
        let quantized = [
            "DynamicQuantizeLinear",
            "MatMulInteger",
            "QLinearMatMul",
            "QuantizeLinear",
        ];
        let by_blocks = is_contrib(n, "MatMulNBits") && int_attribute(n, "accuracy_level", 0) == 4;
        by_blocks || quantized.contains(&n.op_type()) || n.op_type() == "DynamicQuantizeMatMul"
    };
    Ok(Subject {
        rounds_activations: graph.node.iter().any(rounds),
        vocabulary: vocabulary(&view, graph, &interface),
        right_padded_only: counts_itself && !interface.has(Role::PositionIds),
        interface,
    })
}

/// The inputs that a caller feeds, and the outputs.
fn ports(graph: &GraphProto, view: &Graph) -> (Vec<Port>, Vec<Port>) {
    let fed = graph
        .input
        .iter()
        .filter(|v| view.input(v.name()).is_some());
    (
        fed.map(port).collect(),
        graph.output.iter().map(port).collect(),
    )
}

/// The inputs that a caller of `model` feeds, and its outputs, as it declares them.
#[must_use]
pub fn declared(model: &ModelProto) -> (Vec<Port>, Vec<Port>) {
    let graph = model.graph.as_ref();
    graph.map_or_else(Default::default, |graph| ports(graph, &Graph::new(graph)))
}

fn port(info: &ValueInfoProto) -> Port {
    let tensor = match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => Some(tensor),
        _ => None,
    };
    let dims = tensor
        .and_then(|t| t.shape.as_ref())
        .map(|s| s.dim.as_slice())
        .unwrap_or_default();
    Port {
        name: info.name().to_owned(),
        elem_type: tensor.map_or(0, |t| t.elem_type()),
        dims: dims
            .iter()
            .map(|dim| match &dim.value {
                Some(dimension::Value::DimValue(n)) => {
                    usize::try_from(*n).map_or(Dim::Unknown, Dim::Fixed)
                }
                Some(dimension::Value::DimParam(name)) if !name.is_empty() => {
                    Dim::Symbol(name.clone())
                }
                _ => Dim::Unknown,
            })
            .collect(),
    }
}

/// Rows of the embedding table that the token ids pick from, or else the width of the logits.
fn vocabulary(view: &Graph, graph: &GraphProto, interface: &Interface) -> usize {
    let ids = interface
        .inputs
        .iter()
        .find(|i| i.role == Role::TokenIds)
        .map(|i| i.name.as_str());
    let rows = ids.and_then(|ids| {
        view.uses(ids).iter().find_map(|usage| {
            let node = view.node(usage.node)?;
            let table = is_op(node, "Gather")
                && int_attribute(node, "axis", 0) == 0
                && usage.input == Some(1);
            let tensor = table.then(|| view.initializer(view.resolve(node.input.first()?)))??;
            usize::try_from(*tensor.dims.first()?).ok()
        })
    });
    let width = || {
        let logits = graph
            .output
            .iter()
            .find(|o| o.name() == interface.logits)
            .map(port)?;
        match logits.dims.last() {
            Some(Dim::Fixed(n)) => Some(*n),
            _ => None,
        }
    };
    rows.or_else(width)
        .filter(|&n| n > 0)
        .unwrap_or(SMALL_VOCABULARY)
}
