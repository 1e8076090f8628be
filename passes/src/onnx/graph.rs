//! Graphs, nodes and attributes.

use crate::onnx::tensor_shape_proto::Dimension;
use crate::onnx::{
    NodeDeviceConfigurationProto, SparseTensorProto, StringStringEntryProto, TensorProto,
    TypeProto, type_proto,
};

/// A named constant of a node: `type` says which one of the value fields is in use.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttributeProto {
    /// Name of the attribute. Required.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// In the body of a function: the attribute of the call whose value is used. The value fields are then empty.
    #[prost(string, optional, tag = "21")]
    pub ref_attr_name: Option<String>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "13")]
    pub doc_string: Option<String>,
    /// Which value field is in use, as [`attribute_proto::AttributeType`]. Required since IR 2.
    #[prost(enumeration = "attribute_proto::AttributeType", optional, tag = "20")]
    pub r#type: Option<i32>,
    /// The value of a `FLOAT`.
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    /// The value of an `INT`; flags are 0 or 1.
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    /// The value of a `STRING`: UTF-8 in standard operators, any bytes in others.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub s: Option<bytes::Bytes>,
    /// The value of a `TENSOR`, such as that of Constant.
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    /// The value of a `GRAPH`: a branch of If, a body of Loop or Scan. It can read values of the enclosing graphs.
    #[prost(message, optional, tag = "6")]
    pub g: Option<GraphProto>,
    /// The value of a `SPARSE_TENSOR`.
    #[prost(message, optional, tag = "22")]
    pub sparse_tensor: Option<SparseTensorProto>,
    /// The value of a `TYPE_PROTO`.
    #[prost(message, optional, tag = "14")]
    pub tp: Option<TypeProto>,
    /// The values of `FLOATS`. Unpacked: one key for each element.
    #[prost(float, repeated, packed = "false", tag = "7")]
    pub floats: Vec<f32>,
    /// The values of `INTS`, such as axes and permutations. Unpacked: one key for each element.
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    /// The values of `STRINGS`.
    #[prost(bytes = "bytes", repeated, tag = "9")]
    pub strings: Vec<bytes::Bytes>,
    /// The values of `TENSORS`.
    #[prost(message, repeated, tag = "10")]
    pub tensors: Vec<TensorProto>,
    /// The values of `GRAPHS`.
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<GraphProto>,
    /// The values of `SPARSE_TENSORS`.
    #[prost(message, repeated, tag = "23")]
    pub sparse_tensors: Vec<SparseTensorProto>,
    /// The values of `TYPE_PROTOS`.
    #[prost(message, repeated, tag = "15")]
    pub type_protos: Vec<TypeProto>,
}

/// Parts of [`AttributeProto`].
pub mod attribute_proto {
    /// The value fields of [`crate::onnx::AttributeProto`]; `type` holds one of these.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum AttributeType {
        /// Unspecified, which only IR 1 allows.
        Undefined = 0,
        /// `f` holds the value.
        Float = 1,
        /// `i` holds the value.
        Int = 2,
        /// `s` holds the value.
        String = 3,
        /// `t` holds the value.
        Tensor = 4,
        /// `g` holds the value.
        Graph = 5,
        /// `sparse_tensor` holds the value.
        SparseTensor = 11,
        /// `tp` holds the value.
        TypeProto = 13,
        /// `floats` holds the list, which may be empty.
        Floats = 6,
        /// `ints` holds the list, which may be empty.
        Ints = 7,
        /// `strings` holds the list, which may be empty.
        Strings = 8,
        /// `tensors` holds the list, which may be empty.
        Tensors = 9,
        /// `graphs` holds the list, which may be empty.
        Graphs = 10,
        /// `sparse_tensors` holds the list, which may be empty.
        SparseTensors = 12,
        /// `type_protos` holds the list, which may be empty.
        TypeProtos = 14,
    }
}

/// Name, type and shape of a value: an input, an output, or an inner value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueInfoProto {
    /// Name of the value in the inputs and outputs of nodes. Required.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// Element type and shape. Inputs and outputs of the main graph need it; elsewhere it may be left to inference.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "3")]
    pub doc_string: Option<String>,
    /// Key-value metadata for tools; keys are unique.
    #[prost(message, repeated, tag = "4")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

impl ValueInfoProto {
    /// The sizes of a tensor; `None` if it declares no shape, or is no tensor.
    pub fn sizes(&self) -> Option<&[Dimension]> {
        match self.r#type.as_ref()?.value.as_ref()? {
            type_proto::Value::TensorType(tensor) => Some(tensor.shape.as_ref()?.dim.as_slice()),
            _ => None,
        }
    }

    /// [`Self::sizes`], to be changed.
    pub fn sizes_mut(&mut self) -> Option<&mut Vec<Dimension>> {
        match self.r#type.as_mut()?.value.as_mut()? {
            type_proto::Value::TensorType(tensor) => Some(&mut tensor.shape.as_mut()?.dim),
            _ => None,
        }
    }
}

/// One call of an operator, or of a function of the model.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeProto {
    /// Names of the inputs, by position. An empty name is an omitted optional input.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of the outputs, by position. An empty name is an omitted output.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// Name for people and messages. It is optional, and nothing refers to it.
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    /// The operator, such as `MatMul`.
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    /// The operator set that defines `op_type`. Missing or empty: the standard one, also written `ai.onnx`.
    #[prost(string, optional, tag = "7")]
    pub domain: Option<String>,
    /// Distinguishes functions of the model that share domain and name. Standard operators have none.
    #[prost(string, optional, tag = "8")]
    pub overload: Option<String>,
    /// Attributes in any order; names are unique.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "6")]
    pub doc_string: Option<String>,
    /// Key-value metadata for tools; keys are unique. torch writes the path of the module that a node comes from.
    #[prost(message, repeated, tag = "9")]
    pub metadata_props: Vec<StringStringEntryProto>,
    /// Distribution of this node over devices, for each configuration of the model.
    #[prost(message, repeated, tag = "10")]
    pub device_configurations: Vec<NodeDeviceConfigurationProto>,
}

/// Which tensors hold the quantization parameters of a tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorAnnotation {
    /// The quantized tensor.
    #[prost(string, optional, tag = "1")]
    pub tensor_name: Option<String>,
    /// Map from a parameter such as `SCALE_TENSOR` or `ZERO_POINT_TENSOR` to the tensor that holds it.
    #[prost(message, repeated, tag = "2")]
    pub quant_parameter_tensor_names: Vec<StringStringEntryProto>,
}

/// A computation: nodes that read and define named values, each value defined once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GraphProto {
    /// The nodes in topological order.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// Name of the graph.
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    /// Named constants: the weights. Since IR 4 they need not be inputs; one that is also an input is its default
    /// value.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// Constants in sparse form. The name is that of [`SparseTensorProto::values`].
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializer: Vec<SparseTensorProto>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "10")]
    pub doc_string: Option<String>,
    /// The inputs, in order.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// The outputs, in order.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
    /// Types and shapes of inner values, as far as the exporter knew them; names are unique.
    #[prost(message, repeated, tag = "13")]
    pub value_info: Vec<ValueInfoProto>,
    /// Quantization parameters of tensors in this graph.
    #[prost(message, repeated, tag = "14")]
    pub quantization_annotation: Vec<TensorAnnotation>,
    /// Key-value metadata for tools; keys are unique.
    #[prost(message, repeated, tag = "16")]
    pub metadata_props: Vec<StringStringEntryProto>,
}
