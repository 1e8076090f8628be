//! Two ways to the same values, of which the runtime takes one.

use crate::graph::build::node;
use crate::onnx::{GraphProto, NodeProto, TypeProto, ValueInfoProto, type_proto};

/// Nodes that make values under names of their own. They may read every value that is made before the choice.
pub struct Branch {
    /// The nodes, in order.
    pub nodes: Vec<NodeProto>,
    /// The values.
    pub outputs: Vec<String>,
}

impl Branch {
    /// The branch of an `If`, with outputs of the element types `elem_types` and of any shape.
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

/// The node `name` that makes `outputs`, each a name and an element type: in the first way where `condition` holds, a tensor
/// of one boolean, and else in the second.
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
