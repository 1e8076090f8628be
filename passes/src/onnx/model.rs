//! Models, functions and operator sets.

use crate::onnx::{
    AttributeProto, DeviceConfigurationProto, GraphProto, NodeProto, ValueInfoProto,
};

/// How to train the model: a graph that resets it, and a graph that takes one step.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TrainingInfoProto {
    /// Computes initial weights. It has no inputs.
    #[prost(message, optional, tag = "1")]
    pub initialization: Option<GraphProto>,
    /// One training step. It can read values of the main graph.
    #[prost(message, optional, tag = "2")]
    pub algorithm: Option<GraphProto>,
    /// Map from an initializer (key) to the output of `initialization` that resets it (value).
    #[prost(message, repeated, tag = "3")]
    pub initialization_binding: Vec<StringStringEntryProto>,
    /// Map from an initializer (key) to the output that replaces it after a step (value).
    #[prost(message, repeated, tag = "4")]
    pub update_binding: Vec<StringStringEntryProto>,
}

/// A whole .onnx file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelProto {
    /// Version of the file format, as [`Version`]. Required.
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    /// Version of each operator set in use; one entry per domain, at least one.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// The tool that wrote the file.
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    /// The version of that tool.
    #[prost(string, optional, tag = "3")]
    pub producer_version: Option<String>,
    /// Owner of the model, as a reversed domain name.
    #[prost(string, optional, tag = "4")]
    pub domain: Option<String>,
    /// Version number of the model itself.
    #[prost(int64, optional, tag = "5")]
    pub model_version: Option<i64>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "6")]
    pub doc_string: Option<String>,
    /// The main graph.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// Key-value metadata for tools; keys are unique.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
    /// Training information; empty in models for inference.
    #[prost(message, repeated, tag = "20")]
    pub training_info: Vec<TrainingInfoProto>,
    /// Operators that the model defines itself, identified by domain, name and overload. Recursion is not allowed.
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
    /// Sets of devices to which nodes can be distributed.
    #[prost(message, repeated, tag = "26")]
    pub configuration: Vec<DeviceConfigurationProto>,
}

/// One entry of a map from text to text.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StringStringEntryProto {
    /// The key.
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
    /// The value.
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

/// An operator set and its version.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OperatorSetIdProto {
    /// The operator set. Missing or empty: the standard one.
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    /// Its version: of each operator, the newest definition up to this version applies. Required.
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

/// An operator that the model defines by a list of nodes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FunctionProto {
    /// Its name: the `op_type` of calls.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// Names of its inputs within the body, by position.
    #[prost(string, repeated, tag = "4")]
    pub input: Vec<String>,
    /// Names of its outputs within the body, by position.
    #[prost(string, repeated, tag = "5")]
    pub output: Vec<String>,
    /// Attributes without a default.
    #[prost(string, repeated, tag = "6")]
    pub attribute: Vec<String>,
    /// Attributes with a default. No name is both here and in `attribute`.
    #[prost(message, repeated, tag = "11")]
    pub attribute_proto: Vec<AttributeProto>,
    /// The body: nodes in topological order.
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<NodeProto>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "8")]
    pub doc_string: Option<String>,
    /// Operator sets of the body; one entry per domain.
    #[prost(message, repeated, tag = "9")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// Its domain: the `domain` of calls.
    #[prost(string, optional, tag = "10")]
    pub domain: Option<String>,
    /// Distinguishes functions with the same domain and name.
    #[prost(string, optional, tag = "13")]
    pub overload: Option<String>,
    /// Types and shapes of values in the body; names are unique.
    #[prost(message, repeated, tag = "12")]
    pub value_info: Vec<ValueInfoProto>,
    /// Key-value metadata for tools; keys are unique.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// Versions of the file format, for [`ModelProto::ir_version`]. Dated ones are named by their day of publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Version {
    /// No version: proto3 wants an enumeration to start at 0.
    StartVersion = 0,
    /// IR 1: attributes have no type.
    IrVersion20171010 = 1,
    /// IR 2: attributes have a type.
    IrVersion20171030 = 2,
    /// IR 3: operator sets have versions, operators have domains.
    IrVersion2017113 = 3,
    /// IR 4: initializers need not be inputs; `BFLOAT16`.
    IrVersion2019122 = 4,
    /// IR 5: quantization annotations.
    IrVersion2019318 = 5,
    /// IR 6: sparse tensors as constants.
    IrVersion2019919 = 6,
    /// IR 7: training information.
    IrVersion202058 = 7,
    /// IR 8: functions of the model; sparse and optional types.
    IrVersion2021730 = 8,
    /// IR 9: defaults for the attributes of functions; the first four 8-bit floats.
    IrVersion202355 = 9,
    /// IR 10: 4-bit integers, overloads of functions, metadata on graphs, nodes, tensors and values.
    IrVersion2024325 = 10,
    /// IR 11: `FLOAT4E2M1`; distribution over devices.
    IrVersion20250512 = 11,
    /// IR 12: `FLOAT8E8M0`.
    IrVersion20250826 = 12,
    /// IR 13: 2-bit integers.
    IrVersion20251106 = 13,
    /// IR 14, the newest known here: 6-bit floats.
    IrVersion = 14,
}

/// Stability of the definition of an operator. No field uses it since IR 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum OperatorStatus {
    /// It may change.
    Experimental = 0,
    /// It does not change.
    Stable = 1,
}
