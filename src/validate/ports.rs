//! The properties of a language model that validation needs, read from its graph.

use std::collections::HashSet;

use gqa2mla_passes::analysis::cache_layout::laid;
use gqa2mla_passes::analysis::new_rows::new_rows;
use gqa2mla_passes::forms::join::in_place;
use gqa2mla_passes::graph::{Graph, input_at, int_attribute, is_contrib, is_op, subgraphs};
use gqa2mla_passes::onnx::{
    GraphProto, ModelProto, NodeProto, ValueInfoProto, tensor_proto::DataType,
    tensor_shape_proto::dimension, type_proto,
};
use gqa2mla_passes::operators::Operators;

use crate::runtime::given::GivenInput;
use crate::validate::error::ValidateError;
use crate::validate::interface::Interface;
use crate::validate::port::{AxisSize, Port, Role};
use crate::validate::undeclared::with_shapes;

/// Largest number of nodes between a count of tokens and the operator that reads it.
const MOST_CONVERSIONS: usize = 8;

/// Upper bound of random token ids if the size of the vocabulary is unknown.
const SMALL_VOCABULARY: usize = 32;

/// The properties of a language model.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    /// Inputs and outputs with their roles.
    pub interface: Interface,
    /// Size of the vocabulary; a small number if it is unknown.
    pub vocabulary: usize,
    /// Whether the size of the vocabulary is known.
    pub vocabulary_is_known: bool,
    /// Whether an operator computes cache lengths from the mask, so that padding must be on the right. This does not
    /// depend on position inputs, which determine the rotation of keys, not their cache slots.
    pub right_padded_only: bool,
    /// Whether some activations are quantized to integers, so that a small difference may become a whole quantization
    /// step, or are computed in half precision, whatever the type of the logits.
    pub rounds_activations: bool,
}

impl LanguageModel {
    /// Determines the properties of `model`.
    ///
    /// # Errors
    /// [`ValidateError`] if the inputs and outputs are not those of a language model.
    pub fn of(model: &ModelProto) -> Result<Self, ValidateError> {
        let graph = model
            .graph
            .as_ref()
            .ok_or_else(|| ValidateError::Interface("the model has no graph".to_owned()))?;
        let view = Graph::new(graph);
        let (inputs, outputs) = ports(model, graph, &view);
        let interface = Interface::of(&inputs, &outputs, &laid(graph))?
            .giving_new_rows(&new_rows(graph))
            .written_in_place(in_place(model))
            .held_in_rings(rings(&view))
            .held_in_buffers(buffers(&view))
            .counted_by(counters(&view))
            .leaving_unread(|input| view.uses(input).is_empty());
        let fixed = fixed_buffers(graph, &interface, &outputs);
        let interface = interface
            .held_in_buffers(fixed.iter().map(|past| (past.as_str(), -2)))
            .with_defaults(defaults(graph, &view));
        let operators = Operators::default();
        let counts_itself = graph
            .node
            .iter()
            .any(|node| operators.counts_positions(node));
        let vocabulary = vocabulary(&view, graph, &interface);
        Ok(Self {
            rounds_activations: rounds_activations(model),
            vocabulary: vocabulary.unwrap_or(SMALL_VOCABULARY),
            vocabulary_is_known: vocabulary.is_some(),
            right_padded_only: counts_itself,
            interface,
        })
    }
}

impl LanguageModel {
    /// The number of token ids that the model is known to have; no limit if it is unknown.
    #[must_use]
    pub fn known_vocabulary(&self) -> usize {
        match self.vocabulary_is_known {
            true => self.vocabulary,
            false => usize::MAX,
        }
    }

    /// The same model with the values `given` for the inputs that they name.
    ///
    /// # Errors
    /// [`ValidateError`] names an input that the model does not have, or one without a value.
    pub fn fed(self, given: &[GivenInput]) -> Result<Self, ValidateError> {
        let interface = self.interface.fed(given)?;
        interface.check_fed()?;
        Ok(Self { interface, ..self })
    }
}

/// Whether `model` rounds activations: see [`LanguageModel::rounds_activations`].
fn rounds_activations(model: &ModelProto) -> bool {
    let functions = model.functions.iter().flat_map(|f| &f.node);
    let nodes: Vec<&NodeProto> = model
        .graph
        .iter()
        .flat_map(|g| &g.node)
        .chain(functions)
        .collect();
    let mut halves = HashSet::new();
    model
        .graph
        .iter()
        .for_each(|graph| add_halves(graph, &mut halves));
    nodes.into_iter().any(|node| rounds(node, &halves))
}

/// Adds the names of the matrices in half precision among the initializers of `graph` and its subgraphs to `halves`.
fn add_halves<'m>(graph: &'m GraphProto, halves: &mut HashSet<&'m str>) {
    let half = [DataType::Float16 as i32, DataType::Bfloat16 as i32];
    let matrices = graph
        .initializer
        .iter()
        .filter(|t| t.dims.len() > 1 && half.contains(&t.data_type()));
    halves.extend(matrices.map(|t| t.name()));
    let inner = graph.node.iter().flat_map(subgraphs);
    inner.for_each(|inner| add_halves(inner, halves));
}

/// Whether `node` or a node of its subgraphs rounds activations; `halves` are the matrices in half precision. Matrices that
/// are converted before they are multiplied are only stored like that.
fn rounds(node: &NodeProto, halves: &HashSet<&str>) -> bool {
    let quantized = [
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QLinearMatMul",
        "QuantizeLinear",
    ];
    let by_blocks =
        is_contrib(node, "MatMulNBits") && int_attribute(node, "accuracy_level", 0) == 4;
    let in_half = !is_op(node, "Cast")
        && node
            .input
            .iter()
            .any(|input| halves.contains(input.as_str()));
    by_blocks
        || in_half
        || quantized.contains(&node.op_type())
        || subgraphs(node).any(|inner| inner.node.iter().any(|node| rounds(node, halves)))
}

/// The inputs that have a default value.
fn defaults(graph: &GraphProto, view: &Graph) -> Vec<Port> {
    let default = |v: &&ValueInfoProto| view.input(v.name()).is_none();
    graph.input.iter().filter(default).map(port).collect()
}

/// The past inputs that `GroupQueryAttention` uses as ring buffers, each with its smallest number of rows, the window.
fn rings<'g>(graph: &Graph<'g>) -> impl Iterator<Item = (&'g str, usize)> {
    let nodes = graph.nodes().map(|(_, node)| node);
    let rings = nodes.filter(|node| {
        is_contrib(node, "GroupQueryAttention")
            && int_attribute(node, "sliding_window_cache", 0) != 0
    });
    rings.flat_map(|node| {
        let window = usize::try_from(int_attribute(node, "local_window_size", 0)).unwrap_or(0);
        let pasts = node.input.iter().skip(3).take(2);
        pasts.map(move |past| (past.as_str(), window))
    })
}

/// The past inputs into which `TensorScatter` writes new rows, each with the axis of its rows.
fn buffers<'g>(graph: &Graph<'g>) -> impl Iterator<Item = (&'g str, i64)> {
    let nodes = graph.nodes().map(|(_, node)| node);
    let writes = nodes.filter(|node| is_op(node, "TensorScatter"));
    writes.filter_map(|node| {
        let past = graph.resolve(input_at(node, 0)?);
        Some((past, int_attribute(node, "axis", -2)))
    })
}

/// The nodes `GroupQueryAttention` of `graph` and of its subgraphs.
fn operators(graph: &GraphProto) -> Vec<&NodeProto> {
    let mut found = Vec::new();
    for node in &graph.node {
        if is_contrib(node, "GroupQueryAttention") {
            found.push(node);
        }
        found.extend(subgraphs(node).flat_map(operators));
    }
    found
}

/// The pasts of `GroupQueryAttention` that have a constant number of rows, as their presents: it writes new rows behind
/// those that hold a token. The operator may be in a branch, which reads the past of the main graph.
fn fixed_buffers(graph: &GraphProto, interface: &Interface, outputs: &[Port]) -> Vec<String> {
    let operators = operators(graph).into_iter();
    let operators = operators.filter(|node| int_attribute(node, "sliding_window_cache", 0) == 0);
    let pasts = operators.flat_map(|node| node.input.iter().skip(3).take(2));
    let is_fixed = |past: &&String| {
        let cache = interface.caches.iter().find(|cache| cache.past == **past);
        let present = cache.and_then(|c| outputs.iter().find(|output| output.name == c.present));
        let rows = |dims: &[AxisSize]| match dims {
            [_, _, AxisSize::Fixed(rows), _] => Some(*rows),
            _ => None,
        };
        let of_past = cache.and_then(|cache| rows(&cache.dims));
        // The present of another size holds the new rows behind all.
        of_past > Some(0) && of_past == present.and_then(|present| rows(&present.dims))
    };
    pasts.filter(is_fixed).cloned().collect()
}

/// The inputs that count tokens for `GroupQueryAttention`, each with its role.
fn counters<'g>(graph: &'g Graph<'g>) -> impl Iterator<Item = (&'g str, Role)> {
    let nodes = graph.nodes().map(|(_, node)| node);
    let operators = nodes.filter(|node| is_contrib(node, "GroupQueryAttention"));
    operators.flat_map(|node| {
        let count = |at, role| Some((source(graph, input_at(node, at)?), role));
        [count(5, Role::LastSlot), count(6, Role::TotalLength)]
            .into_iter()
            .flatten()
    })
}

/// The value that `value` has the elements of, in another type or shape.
fn source<'g>(graph: &'g Graph<'g>, value: &'g str) -> &'g str {
    let mut current = graph.resolve(value);
    let kept = ["Cast", "Reshape", "Squeeze", "Unsqueeze"];
    // Exporters write one or two of these nodes; the bound stops at a cycle in a malformed graph.
    for _ in 0..MOST_CONVERSIONS {
        match graph.producer(current) {
            Some((_, node)) if kept.iter().any(|op| is_op(node, op)) => match node.input.first() {
                Some(input) => current = graph.resolve(input),
                None => return current,
            },
            _ => return current,
        }
    }
    current
}

/// The inputs without a default value, and the outputs.
fn ports(model: &ModelProto, graph: &GraphProto, view: &Graph) -> (Vec<Port>, Vec<Port>) {
    let fed = graph
        .input
        .iter()
        .filter(|v| view.input(v.name()).is_some());
    let inputs: Vec<Port> = fed.map(port).collect();
    let outputs = graph.output.iter().map(port).collect();
    let outputs = with_shapes(model, &inputs, outputs);
    (inputs, outputs)
}

/// The declared inputs of `model` without a default, and its outputs.
#[must_use]
pub fn declared(model: &ModelProto) -> (Vec<Port>, Vec<Port>) {
    let graph = model.graph.as_ref();
    graph.map_or_else(Default::default, |graph| {
        ports(model, graph, &Graph::new(graph))
    })
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
                    usize::try_from(*n).map_or(AxisSize::Unknown, AxisSize::Fixed)
                }
                Some(dimension::Value::DimParam(name)) if !name.is_empty() => {
                    AxisSize::Symbol(name.clone())
                }
                _ => AxisSize::Unknown,
            })
            .collect(),
    }
}

/// The number of rows of the token embedding, or else the last size of the logits.
fn vocabulary(view: &Graph, graph: &GraphProto, interface: &Interface) -> Option<usize> {
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
            Some(AxisSize::Fixed(n)) => Some(*n),
            _ => None,
        }
    };
    rows.or_else(width).filter(|&n| n > 0)
}
