//! An `If` with two computations of the same value.

use crate::graph::build::node;
use crate::onnx::{GraphProto, NodeProto, TypeProto, ValueInfoProto, type_proto};

/// One of the two computations. Its nodes may read every value that is computed before the `If`.
pub struct Branch {
    /// The nodes, in order.
    pub nodes: Vec<NodeProto>,
    /// The name of the result, which differs from the output of the `If`.
    pub output: String,
}

impl Branch {
    /// The nodes as a subgraph. Its output has element type `elem_type` and an unspecified shape.
    fn graph(self, elem_type: i32) -> GraphProto {
        let tensor = type_proto::Tensor {
            elem_type: Some(elem_type),
            shape: None,
        };
        let output = ValueInfoProto {
            name: Some(self.output.clone()),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(tensor)),
                ..TypeProto::default()
            }),
            ..ValueInfoProto::default()
        };
        GraphProto {
            name: Some(self.output),
            node: self.nodes,
            output: vec![output],
            ..GraphProto::default()
        }
    }
}

/// An `If` node called `name` with the output `output` of element type `elem_type`. It runs the first branch if
/// `condition`, a boolean tensor of one element, is true, and the second one otherwise.
pub fn choice(
    (name, output): (&str, &str),
    condition: &str,
    elem_type: i32,
    [then, otherwise]: [Branch; 2],
) -> NodeProto {
    node("If", name, &[condition], &[output])
        .with_graph("then_branch", then.graph(elem_type))
        .with_graph("else_branch", otherwise.graph(elem_type))
}
