//! Shapes of outputs that a model does not declare, inferred from its nodes, or else from names.

use gqa2mla_passes::facts::Facts;
use gqa2mla_passes::graph::Graph;
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::onnx::{ModelProto, ValueInfoProto};
use gqa2mla_passes::operators::Operators;

use crate::validate::pairing::{names_logits, signature};
use crate::validate::port::{AxisSize, Port};

/// `outputs` of `model`, those without a declared shape with the inferred one. Where it cannot be inferred, as for the results of
/// an `If`, see [`by_name`].
pub fn with_shapes(model: &ModelProto, inputs: &[Port], mut outputs: Vec<Port>) -> Vec<Port> {
    let Some(graph) = &model.graph else {
        return outputs;
    };
    let is_bare = |info: &&ValueInfoProto| info.sizes().is_none();
    let bare: Vec<&str> = graph
        .output
        .iter()
        .filter(is_bare)
        .map(|v| v.name())
        .collect();
    if bare.is_empty() {
        return outputs;
    }
    // Bytes of tensors are shared, and those in other files are not needed for shapes.
    let model = Model {
        proto: model.clone(),
        ..Model::default()
    };
    let facts = Facts::of_main(&model, &Graph::new(graph), Operators::default().rules());
    for port in outputs
        .iter_mut()
        .filter(|port| bare.contains(&port.name.as_str()))
    {
        let sizes = facts.shape(&port.name).unwrap_or_default().iter();
        port.dims = sizes
            .map(|size| match size.as_i64().map(usize::try_from) {
                Some(Ok(size)) => AxisSize::Fixed(size),
                Some(Err(_)) => AxisSize::Unknown,
                None => AxisSize::Symbol(size.to_string()),
            })
            .collect();
        if port.dims.is_empty() {
            port.dims = by_name(port, inputs);
        }
    }
    outputs
}

/// Three axes for the output that is named logits. An output with the name of a past in `inputs` has the shape of that past; sizes
/// that are no constants are unknown, but for that of the first axis, the batch. Empty for other outputs.
fn by_name(port: &Port, inputs: &[Port]) -> Vec<AxisSize> {
    if names_logits(port) {
        return vec![AxisSize::Unknown; 3];
    }
    let continues = |past: &&Port| {
        past.elem_type == port.elem_type
            && past.dims.len() >= 3
            && signature(past) == signature(port)
    };
    let past = inputs.iter().find(continues);
    let sizes = past.iter().flat_map(|past| past.dims.iter().enumerate());
    sizes
        .map(|(axis, size)| match size {
            AxisSize::Symbol(_) if axis > 0 => AxisSize::Unknown,
            size => size.clone(),
        })
        .collect()
}
