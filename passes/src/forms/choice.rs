//! An `If` with two computations of the same values.

use crate::graph::build::node;
use crate::onnx::{GraphProto, NodeProto, TypeProto, ValueInfoProto, type_proto};

/// One of the two computations. Its nodes may read every value that is computed before the `If`.
pub struct Branch {
    /// The nodes, in order.
    pub nodes: Vec<NodeProto>,
    /// The names of the results, which differ from the outputs of the `If`.
    pub outputs: Vec<String>,
}

impl Branch {
    /// The nodes as a subgraph. Its outputs have the element types `elem_types` and unspecified shapes.
    fn graph(self, elem_types: &[i32]) -> GraphProto {
        let declared = self.outputs.iter().zip(elem_types);
        let declared = declared.map(|(name, &elem_type)| {
            let tensor = type_proto::Tensor {
                elem_type: Some(elem_type),
                shape: None,
            };
            ValueInfoProto {
                name: Some(name.clone()),
                r#type: Some(TypeProto {
                    value: Some(type_proto::Value::TensorType(tensor)),
                    ..TypeProto::default()
                }),
                ..ValueInfoProto::default()
            }
        });
        GraphProto {
            output: declared.collect(),
            name: self.outputs.first().cloned(),
            node: self.nodes,
            ..GraphProto::default()
        }
    }
}

/// An `If` node called `name` with the outputs `outputs`, each a name and an element type. It runs the first branch if
/// `condition`, a boolean tensor of one element, is true, and the second one otherwise.
pub fn choice(
    name: &str,
    outputs: &[(&str, i32)],
    condition: &str,
    [then, otherwise]: [Branch; 2],
) -> NodeProto {
    let names: Vec<&str> = outputs.iter().map(|(output, _)| *output).collect();
    let elem_types: Vec<i32> = outputs.iter().map(|(_, elem_type)| *elem_type).collect();
    node("If", name, &[condition], &names)
        .with_graph("then_branch", then.graph(&elem_types))
        .with_graph("else_branch", otherwise.graph(&elem_types))
}
