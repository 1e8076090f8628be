//! Two ways to one value, of which the runtime takes one.

use crate::graph::build::node;
use crate::onnx::{GraphProto, NodeProto, TypeProto, ValueInfoProto, type_proto};

/// Nodes that make one value, under a name of its own. They may read every value that is made before the choice.
pub struct Branch {
    /// The nodes, in order.
    pub nodes: Vec<NodeProto>,
    /// The value.
    pub output: String,
}

impl Branch {
    /// The branch of an `If`, whose output is of element type `elem_type` and of any shape.
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

/// The node `name` that makes `output`, of element type `elem_type`: in the first way where `condition` holds, a tensor of
/// one boolean, and else in the second.
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
