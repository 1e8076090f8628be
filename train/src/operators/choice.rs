//! `If` whose branches are constants, such as two tables of a rotation for short and long contexts.

use candle_core::DType;
use gqa2mla_passes::graph::attribute;
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::onnx::tensor_proto::DataLocation;
use gqa2mla_passes::onnx::{GraphProto, NodeProto, TensorProto};

use crate::error::OpError;
use crate::operators::{Call, Computed, TrainOperator, stops};
use crate::stored;

pub const OPERATORS: &[TrainOperator] = &[stops("If", chosen)];

/// The branches of an `If`.
const BRANCHES: [&str; 2] = ["then_branch", "else_branch"];

/// Whether all results of both branches of `node` are constants.
pub fn is_of_constants(node: &NodeProto) -> bool {
    BRANCHES.into_iter().all(|name| {
        branch(node, name).is_some_and(|graph| {
            let mut outputs = graph.output.iter();
            outputs.all(|output| constant(graph, output.name()).is_some())
        })
    })
}

fn branch<'n>(node: &'n NodeProto, name: &str) -> Option<&'n GraphProto> {
    attribute(node, name)?.g.as_ref()
}

fn chosen(call: &Call) -> Result<Computed, OpError> {
    let condition = call.input(0)?.to_dtype(DType::F32)?.flatten_all()?;
    let holds = condition
        .to_vec1::<f32>()?
        .first()
        .is_some_and(|&v| v != 0.0);
    let [first, second] = BRANCHES;
    let name = if holds { first } else { second };
    let mut outputs = Vec::new();
    for output in branch(call.node, name)
        .iter()
        .flat_map(|graph| &graph.output)
    {
        let tensor = branch(call.node, name).and_then(|graph| constant(graph, output.name()));
        let tensor = tensor.ok_or_else(|| OpError::Invalid(format!("{name} computes a result")))?;
        let read = stored::read(&Model::default(), tensor);
        outputs.push(read.map_err(|e| OpError::Invalid(e.to_string()))?);
    }
    Ok(Computed {
        outputs,
        pull: None,
    })
}

/// The value `name` of `graph`, if it is a constant or an initializer in it, with its numbers in the graph.
fn constant<'g>(graph: &'g GraphProto, name: &str) -> Option<&'g TensorProto> {
    let initial = graph.initializer.iter().find(|t| t.name() == name);
    let made = || {
        let makes = |node: &&NodeProto| {
            node.op_type() == "Constant" && node.output.iter().any(|o| o == name)
        };
        let node = graph.node.iter().find(makes)?;
        attribute(node, "value")?.t.as_ref()
    };
    let tensor = initial.or_else(made);
    tensor.filter(|t| t.data_location() != DataLocation::External)
}
