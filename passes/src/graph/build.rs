//! Constructors of ONNX nodes, tensors and `ValueInfoProto` entries.

use bytes::Bytes;

use crate::graph::Graph;
use crate::onnx::stored::inline_bytes;
use crate::onnx::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

/// A node of the default ONNX domain.
pub fn node(op: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(name.to_owned()),
        input: inputs.iter().map(|&s| s.to_owned()).collect(),
        output: outputs.iter().map(|&s| s.to_owned()).collect(),
        ..NodeProto::default()
    }
}

impl NodeProto {
    /// Adds an integer attribute.
    pub fn with_int(mut self, name: &str, value: i64) -> Self {
        self.attribute.push(AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(AttributeType::Int as i32),
            i: Some(value),
            ..AttributeProto::default()
        });
        self
    }

    /// Adds a list of integers as an attribute.
    pub fn with_ints(mut self, name: &str, values: &[i64]) -> Self {
        self.attribute.push(AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(AttributeType::Ints as i32),
            ints: values.to_vec(),
            ..AttributeProto::default()
        });
        self
    }

    /// Adds a text as an attribute.
    pub fn with_text(mut self, name: &str, value: &str) -> Self {
        self.attribute.push(AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(AttributeType::String as i32),
            s: Some(Bytes::copy_from_slice(value.as_bytes())),
            ..AttributeProto::default()
        });
        self
    }

    /// Adds a graph as an attribute.
    pub fn with_graph(mut self, name: &str, graph: GraphProto) -> Self {
        self.attribute.push(AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(AttributeType::Graph as i32),
            g: Some(graph),
            ..AttributeProto::default()
        });
        self
    }

    /// Adds a float attribute.
    pub fn with_float(mut self, name: &str, value: f32) -> Self {
        self.attribute.push(AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(AttributeType::Float as i32),
            f: Some(value),
            ..AttributeProto::default()
        });
        self
    }
}

/// The name of an int64 initializer with the elements `values`. It depends on the elements only, so that all nodes that
/// need these elements share one initializer.
pub fn vector_name(values: &[i64]) -> String {
    let text: Vec<String> = values.iter().map(ToString::to_string).collect();
    format!("mla/[{}]", text.join(","))
}

/// An int64 scalar as an initializer.
pub fn int64_scalar(name: &str, value: i64) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(DataType::Int64 as i32),
        raw_data: Some(value.to_le_bytes().to_vec().into()),
        ..TensorProto::default()
    }
}

/// An int64 vector as an initializer.
pub fn int64_vector(name: &str, values: &[i64]) -> TensorProto {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorProto {
        name: Some(name.to_owned()),
        dims: vec![values.len() as i64],
        data_type: Some(DataType::Int64 as i32),
        raw_data: Some(Bytes::from(bytes)),
        ..TensorProto::default()
    }
}

/// An fp32 initializer of the shape `dims` with the elements `values`, named after its content.
pub fn floats(dims: &[i64], values: &[f32]) -> TensorProto {
    let text: Vec<String> = values.iter().map(ToString::to_string).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorProto {
        name: Some(format!("mla/float{dims:?}[{}]", text.join(","))),
        dims: dims.to_vec(),
        data_type: Some(DataType::Float as i32),
        raw_data: Some(Bytes::from(bytes)),
        ..TensorProto::default()
    }
}

/// An int8 initializer of `count` zeros, named after its content.
pub fn int8_zeros(count: usize) -> TensorProto {
    TensorProto {
        name: Some(format!("mla/int8[{count}]*0")),
        dims: vec![count as i64],
        data_type: Some(DataType::Int8 as i32),
        raw_data: Some(Bytes::from(vec![0; count])),
        ..TensorProto::default()
    }
}

/// A uint8 initializer of the shape `dims` whose elements are all `value`, named after its content.
pub fn uint8(dims: &[i64], value: u8) -> TensorProto {
    let count = dims.iter().product::<i64>().max(0) as usize;
    TensorProto {
        name: Some(format!("mla/uint8{dims:?}*{value}")),
        dims: dims.to_vec(),
        data_type: Some(DataType::Uint8 as i32),
        raw_data: Some(Bytes::from(vec![value; count])),
        ..TensorProto::default()
    }
}

/// Looks for an initializer of `graph` with the content of `tensor` that no caller can override. Returns the name to
/// use, and the tensor if it has to be added. If another value has its name, the tensor gets a new name.
pub fn shared_constant(graph: &Graph, mut tensor: TensorProto) -> (String, Option<TensorProto>) {
    loop {
        let name = tensor.name().to_owned();
        match graph.initializer(&name) {
            Some(known) if same_content(known, &tensor) && !graph.is_reachable_input(&name) => {
                return (name, None);
            }
            None if !graph.is_taken(&name) => return (name, Some(tensor)),
            _ => tensor.name = Some(format!("{name}+")),
        }
    }
}

/// Looks for a node of `graph` that is equal to `node`, whose output has the name of the node. Returns the name of the
/// output to use, and the node if it has to be added. If another value has its name, the node gets a new name.
pub fn shared_node(graph: &Graph, mut node: NodeProto) -> (String, Option<NodeProto>) {
    loop {
        let name = node.name().to_owned();
        match graph.producer(&name) {
            Some((_, known)) if *known == node => return (name, None),
            None if !graph.is_taken(&name) => return (name, Some(node)),
            _ => {
                let other = format!("{name}+");
                node.output = vec![other.clone()];
                node.name = Some(other);
            }
        }
    }
}

fn same_content(a: &TensorProto, b: &TensorProto) -> bool {
    let bytes = inline_bytes(a);
    a.dims == b.dims && a.data_type == b.data_type && bytes.is_some() && bytes == inline_bytes(b)
}

/// The new size of one axis of a graph input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewSize {
    /// A constant.
    Fixed(i64),
    /// The old size of the same axis.
    Keep,
    /// A symbolic dimension (`dim_param`).
    Symbol(String),
}

/// The new element type and shape of a graph input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewType {
    /// Its ONNX element type; `None` keeps the old one.
    pub elem_type: Option<i32>,
    /// Its shape.
    pub sizes: Vec<NewSize>,
}

impl From<Vec<NewSize>> for NewType {
    fn from(sizes: Vec<NewSize>) -> Self {
        Self {
            elem_type: None,
            sizes,
        }
    }
}

/// `info` with the type and shape `new`; its name, doc string and denotations are kept.
pub fn retyped(info: &ValueInfoProto, new: &NewType) -> ValueInfoProto {
    let mut info = info.clone();
    if let Some(TypeProto {
        value: Some(type_proto::Value::TensorType(tensor)),
        ..
    }) = info.r#type.as_mut()
    {
        tensor.elem_type = new.elem_type.or(tensor.elem_type);
        let old = tensor.shape.take().unwrap_or_default();
        let dim = new
            .sizes
            .iter()
            .enumerate()
            .map(|(axis, dim)| {
                let kept = old.dim.get(axis).cloned().unwrap_or_default();
                match dim {
                    NewSize::Keep => kept,
                    NewSize::Fixed(n) => Dimension {
                        value: Some(dimension::Value::DimValue(*n)),
                        denotation: kept.denotation,
                    },
                    NewSize::Symbol(name) => Dimension {
                        value: Some(dimension::Value::DimParam(name.clone())),
                        denotation: kept.denotation,
                    },
                }
            })
            .collect();
        tensor.shape = Some(TensorShapeProto { dim });
    }
    info
}

/// The `ValueInfoProto` of a tensor whose sizes are all constant.
pub fn value(name: &str, elem_type: i32, sizes: &[i64]) -> ValueInfoProto {
    let size = |&n: &i64| Dimension {
        value: Some(dimension::Value::DimValue(n)),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(elem_type),
        shape: Some(TensorShapeProto {
            dim: sizes.iter().map(size).collect(),
        }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_is_shared_only_with_its_like() {
        let shared = |there: &[i64]| {
            let proto = GraphProto {
                initializer: vec![int64_vector("mla/[2]", there)],
                ..GraphProto::default()
            };
            shared_constant(&Graph::new(&proto), int64_vector("mla/[2]", &[2]))
        };
        assert_eq!(shared(&[2]), ("mla/[2]".to_owned(), None));
        let (name, new) = shared(&[3]);
        assert_eq!(name, "mla/[2]+");
        assert_eq!(new, Some(int64_vector("mla/[2]+", &[2])));
    }
}
