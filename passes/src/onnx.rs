//! The messages of an ONNX file, as the ONNX IR specification defines them at IR 14.
//!
//! One declaration for each message, field and enumeration of `onnx-ml.proto` of onnx 1.23.2, with its name and number.
//!
//! The definition is proto2, whose fields may be present and equal to their default: `Option` keeps such a field
//! through reading and writing, and the accessor of the same name gives the default where it is missing. "Required"
//! below is what the specification asks of a file; nothing here enforces it. Enumerations are kept as integers, so that
//! a value newer than IR 14 survives; fields newer than IR 14 do not. Repeated numbers are packed where the definition
//! says so, and read in either form. `bytes` fields are [`bytes::Bytes`]: decoding from a mapped file shares its pages
//! and copies no weights.

/// A named constant of a node: exactly one of the value fields is in use, and `type` says which.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttributeProto {
    /// What the operator calls this attribute. Required.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// In the body of a function: the attribute of the caller whose value is taken. The value fields are empty then.
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
    /// The value of a `GRAPH`: a branch of If, a body of Loop or Scan. It sees the values of the graphs around it.
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
    /// The value fields of [`super::AttributeProto`]; `type` holds one of these.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum AttributeType {
        /// Not said: only files of IR 1 may leave it so.
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

/// Name, type and shape of a value: an input, an output, or one between two nodes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueInfoProto {
    /// The value, as nodes name it in their inputs and outputs. Required.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// Element type and shape. Inputs and outputs of the main graph need it; elsewhere it may be left to inference.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "3")]
    pub doc_string: Option<String>,
    /// Notes for tools; no key stands twice.
    #[prost(message, repeated, tag = "4")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// One call of an operator, or of a function of the model.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeProto {
    /// Names of the values that are read, by position. An empty name is an optional input left out.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of the values that are made, by position. An empty name is an output nobody wants.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// Name for people and messages. It may be missing, and nothing refers to it.
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    /// The operator, such as `MatMul`.
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    /// The operator set that defines `op_type`. Missing or empty: the standard one, also written `ai.onnx`.
    #[prost(string, optional, tag = "7")]
    pub domain: Option<String>,
    /// Which of several functions of the model that share domain and name. Standard operators have none.
    #[prost(string, optional, tag = "8")]
    pub overload: Option<String>,
    /// Constants that the operator takes, in any order; no name stands twice.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "6")]
    pub doc_string: Option<String>,
    /// Notes for tools: torch writes the path of the module a node came from. No key stands twice.
    #[prost(message, repeated, tag = "9")]
    pub metadata_props: Vec<StringStringEntryProto>,
    /// How this node is spread over devices, for each configuration of the model that covers it.
    #[prost(message, repeated, tag = "10")]
    pub device_configurations: Vec<NodeDeviceConfigurationProto>,
}

/// One entry of a map from an integer to a list of integers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IntIntListEntryProto {
    /// The key.
    #[prost(int64, optional, tag = "1")]
    pub key: Option<i64>,
    /// The list. Unpacked: one key for each element.
    #[prost(int64, repeated, packed = "false", tag = "2")]
    pub value: Vec<i64>,
}

/// How one node is spread over the devices of one configuration.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeDeviceConfigurationProto {
    /// The [`DeviceConfigurationProto::name`] this speaks of. Required.
    #[prost(string, optional, tag = "1")]
    pub configuration_id: Option<String>,
    /// How inputs and outputs of the node are split; one entry a tensor.
    #[prost(message, repeated, tag = "2")]
    pub sharding_spec: Vec<ShardingSpecProto>,
    /// The stage of a pipeline the node runs in.
    #[prost(int32, optional, tag = "3")]
    pub pipeline_stage: Option<i32>,
}

/// How one input or output of a node is split or copied over devices.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardingSpecProto {
    /// The input or output of the node. Required.
    #[prost(string, optional, tag = "1")]
    pub tensor_name: Option<String>,
    /// The devices that hold shards, as indices into the configuration, or as keys of device groups. Unpacked.
    #[prost(int64, repeated, packed = "false", tag = "2")]
    pub device: Vec<i64>,
    /// The devices of each group, where an entry of `device` means a group that holds the same shard.
    #[prost(message, repeated, tag = "3")]
    pub index_to_device_group_map: Vec<IntIntListEntryProto>,
    /// How the axes are split; axes without an entry are whole everywhere.
    #[prost(message, repeated, tag = "4")]
    pub sharded_dim: Vec<ShardedDimProto>,
}

/// How one axis of a tensor is split.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardedDimProto {
    /// The axis, from -rank to rank - 1; negative ones count from the back. Required.
    #[prost(int64, optional, tag = "1")]
    pub axis: Option<i64>,
    /// The splits: one, or several where a reshape has merged axes that were split each by itself.
    #[prost(message, repeated, tag = "2")]
    pub simple_sharding: Vec<SimpleShardedDimProto>,
}

/// A split of a dimension into a fixed number of parts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SimpleShardedDimProto {
    /// How many parts. Required.
    #[prost(int64, optional, tag = "3")]
    pub num_shards: Option<i64>,
    /// The length that is split, in elements.
    #[prost(oneof = "simple_sharded_dim_proto::Dim", tags = "1, 2")]
    pub dim: Option<simple_sharded_dim_proto::Dim>,
}

/// Parts of [`SimpleShardedDimProto`].
pub mod simple_sharded_dim_proto {
    /// The length that is split.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Dim {
        /// A known length.
        #[prost(int64, tag = "1")]
        DimValue(i64),
        /// A symbol, as in shapes.
        #[prost(string, tag = "2")]
        DimParam(String),
    }
}

/// How to train the model: a graph that resets it, and a graph that takes one step.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TrainingInfoProto {
    /// Computes initial weights. It has no inputs.
    #[prost(message, optional, tag = "1")]
    pub initialization: Option<GraphProto>,
    /// One training step. It runs joined to the main graph, whose values it may read.
    #[prost(message, optional, tag = "2")]
    pub algorithm: Option<GraphProto>,
    /// From an initializer (key) to the output of `initialization` that resets it (value).
    #[prost(message, repeated, tag = "3")]
    pub initialization_binding: Vec<StringStringEntryProto>,
    /// From an initializer (key) to the output that replaces it after a step (value).
    #[prost(message, repeated, tag = "4")]
    pub update_binding: Vec<StringStringEntryProto>,
}

/// A whole .onnx file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelProto {
    /// Version of the file format, as [`Version`]. Required.
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    /// Version of each operator set in use; one entry a domain, at least one in all.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// The tool that wrote the file.
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    /// The version of that tool.
    #[prost(string, optional, tag = "3")]
    pub producer_version: Option<String>,
    /// Whose model it is, as a reversed domain name.
    #[prost(string, optional, tag = "4")]
    pub domain: Option<String>,
    /// Version of the model itself, counted by whoever makes it.
    #[prost(int64, optional, tag = "5")]
    pub model_version: Option<i64>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "6")]
    pub doc_string: Option<String>,
    /// The main graph. A file without one describes no computation.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// Notes for tools; no key stands twice.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
    /// How to train it; empty in models for inference.
    #[prost(message, repeated, tag = "20")]
    pub training_info: Vec<TrainingInfoProto>,
    /// Operators that the model defines itself. Domain, name and overload together tell them apart; none may call
    /// itself.
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
    /// Sets of devices for which the nodes say how they are spread.
    #[prost(message, repeated, tag = "26")]
    pub configuration: Vec<DeviceConfigurationProto>,
}

/// A set of devices that nodes can be spread over.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceConfigurationProto {
    /// What nodes call it in [`NodeDeviceConfigurationProto::configuration_id`]. Required.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// How many devices there are. Required.
    #[prost(int32, optional, tag = "2")]
    pub num_devices: Option<i32>,
    /// Their names: none, or `num_devices` of them.
    #[prost(string, repeated, tag = "3")]
    pub device: Vec<String>,
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

/// Which tensors hold the quantization parameters of a tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorAnnotation {
    /// The quantized tensor.
    #[prost(string, optional, tag = "1")]
    pub tensor_name: Option<String>,
    /// From a parameter such as `SCALE_TENSOR` or `ZERO_POINT_TENSOR` to the tensor that holds it.
    #[prost(message, repeated, tag = "2")]
    pub quant_parameter_tensor_names: Vec<StringStringEntryProto>,
}

/// A computation: nodes that read and make named values, each value made once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GraphProto {
    /// The nodes, every one after those whose outputs it reads.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// Name of the graph.
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    /// Constants by name: the weights. Since IR 4 they need not be inputs; one that is, is the input's default value.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// Constants in sparse form. The name is that of [`SparseTensorProto::values`].
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializer: Vec<SparseTensorProto>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "10")]
    pub doc_string: Option<String>,
    /// What the caller provides, in order.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// What the caller gets, in order.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
    /// Types and shapes of values in between, as far as the exporter knew them; no name stands twice.
    #[prost(message, repeated, tag = "13")]
    pub value_info: Vec<ValueInfoProto>,
    /// Quantization parameters of tensors in this graph.
    #[prost(message, repeated, tag = "14")]
    pub quantization_annotation: Vec<TensorAnnotation>,
    /// Notes for tools; no key stands twice.
    #[prost(message, repeated, tag = "16")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// A constant tensor: its elements in one of the data fields, or in another file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorProto {
    /// The shape, outermost dimension first; empty for a scalar. Unpacked: one key for each dimension.
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    /// Element type, as [`tensor_proto::DataType`]. Required.
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    /// The part of a larger tensor that this one holds. Nothing writes it.
    #[prost(message, optional, tag = "3")]
    pub segment: Option<tensor_proto::Segment>,
    /// Elements of `FLOAT`; `COMPLEX64` takes two entries, real part first. Packed.
    #[prost(float, repeated, packed = "true", tag = "4")]
    pub float_data: Vec<f32>,
    /// Elements of `INT32` and of all narrower types but strings, an entry each; floats narrower than 32 bits are
    /// stored as their bits. 4-bit types put two elements in an entry and 2-bit types four, lowest bits first; 6-bit
    /// types one. Packed.
    #[prost(int32, repeated, packed = "true", tag = "5")]
    pub int32_data: Vec<i32>,
    /// Elements of `STRING`, UTF-8 without a final zero.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub string_data: Vec<bytes::Bytes>,
    /// Elements of `INT64`. Packed.
    #[prost(int64, repeated, packed = "true", tag = "7")]
    pub int64_data: Vec<i64>,
    /// The value this tensor is, where it is an initializer.
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "12")]
    pub doc_string: Option<String>,
    /// The elements of any type but `STRING`: row-major, little-endian, narrow types filled in from the lowest bits,
    /// four 6-bit elements to three bytes. It stands in place of the typed fields.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub raw_data: Option<bytes::Bytes>,
    /// Where the bytes of an external tensor are: `location`, a path relative to the model's folder; `offset` and
    /// `length` in bytes, as decimal text; `checksum`, the SHA-1 of the file. Only `location` is required.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// Whether the bytes are in this message or in another file, as [`tensor_proto::DataLocation`].
    #[prost(enumeration = "tensor_proto::DataLocation", optional, tag = "14")]
    pub data_location: Option<i32>,
    /// Elements of `DOUBLE`; `COMPLEX128` takes two entries, real part first. Packed.
    #[prost(double, repeated, packed = "true", tag = "10")]
    pub double_data: Vec<f64>,
    /// Elements of `UINT64` and of `UINT32`. Packed.
    #[prost(uint64, repeated, packed = "true", tag = "11")]
    pub uint64_data: Vec<u64>,
    /// Notes for tools; no key stands twice.
    #[prost(message, repeated, tag = "16")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// Parts of [`TensorProto`].
pub mod tensor_proto {
    /// A range of elements of a tensor stored in pieces.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Segment {
        /// First element.
        #[prost(int64, optional, tag = "1")]
        pub begin: Option<i64>,
        /// One past the last element.
        #[prost(int64, optional, tag = "2")]
        pub end: Option<i64>,
    }

    /// Element types. Fields hold them as plain integers, so that types newer than these survive.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum DataType {
        /// Not said; no tensor may have it.
        Undefined = 0,
        /// IEEE 754, 32 bits.
        Float = 1,
        /// Unsigned, 8 bits.
        Uint8 = 2,
        /// Two's complement, 8 bits.
        Int8 = 3,
        /// Unsigned, 16 bits.
        Uint16 = 4,
        /// Two's complement, 16 bits.
        Int16 = 5,
        /// Two's complement, 32 bits.
        Int32 = 6,
        /// Two's complement, 64 bits.
        Int64 = 7,
        /// UTF-8 text of any length.
        String = 8,
        /// A byte: 0 or 1.
        Bool = 9,
        /// IEEE 754, 16 bits: 5 of exponent, 10 of fraction.
        Float16 = 10,
        /// IEEE 754, 64 bits.
        Double = 11,
        /// Unsigned, 32 bits.
        Uint32 = 12,
        /// Unsigned, 64 bits.
        Uint64 = 13,
        /// Two `FLOAT`, real part first.
        Complex64 = 14,
        /// Two `DOUBLE`, real part first.
        Complex128 = 15,
        /// The upper 16 bits of a `FLOAT`: 8 of exponent, 7 of fraction.
        Bfloat16 = 16,
        /// 8 bits: 4 of exponent, 3 of fraction; NaN, no infinities.
        Float8e4m3fn = 17,
        /// 8 bits: 4 of exponent, 3 of fraction; NaN, no infinities, no negative zero.
        Float8e4m3fnuz = 18,
        /// 8 bits: 5 of exponent, 2 of fraction; NaN and infinities, as IEEE 754 has them.
        Float8e5m2 = 19,
        /// 8 bits: 5 of exponent, 2 of fraction; NaN, no infinities, no negative zero.
        Float8e5m2fnuz = 20,
        /// Unsigned, 4 bits: 0 to 15. Two in a byte.
        Uint4 = 21,
        /// Two's complement, 4 bits: -8 to 7. Two in a byte.
        Int4 = 22,
        /// 4 bits: sign, 2 of exponent, 1 of fraction. Two in a byte.
        Float4e2m1 = 23,
        /// 8 bits of exponent and nothing else: a power of two, the scale of a microscaled block.
        Float8e8m0 = 24,
        /// Unsigned, 2 bits: 0 to 3. Four in a byte.
        Uint2 = 25,
        /// Two's complement, 2 bits: -2 to 1. Four in a byte.
        Int2 = 26,
        /// 6 bits: sign, 2 of exponent, 3 of fraction. Four in three bytes.
        Float6e2m3 = 27,
        /// 6 bits: sign, 3 of exponent, 2 of fraction. Four in three bytes.
        Float6e3m2 = 28,
    }

    /// Where the bytes of a tensor are.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum DataLocation {
        /// In the message: `raw_data`, or else the field of the type.
        Default = 0,
        /// In the file that `external_data` names.
        External = 1,
    }
}

/// A constant tensor of which only some elements are stored. The others are zero, or empty strings.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SparseTensorProto {
    /// The stored elements, `[stored]`. Its name is the name of the sparse tensor.
    #[prost(message, optional, tag = "1")]
    pub values: Option<TensorProto>,
    /// Where they belong, ascending: INT64 `[stored]` into the flat tensor, or `[stored, rank]`.
    #[prost(message, optional, tag = "2")]
    pub indices: Option<TensorProto>,
    /// Shape of the whole tensor. Unpacked: one key for each dimension.
    #[prost(int64, repeated, packed = "false", tag = "3")]
    pub dims: Vec<i64>,
}

/// A shape, possibly with symbols.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorShapeProto {
    /// The dimensions, outermost first; none for a scalar. (An unknown rank is a type without a shape.)
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<tensor_shape_proto::Dimension>,
}

/// Parts of [`TensorShapeProto`].
pub mod tensor_shape_proto {
    /// One dimension: a length, a symbol, or unknown.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Dimension {
        /// What the dimension stands for, by a standard name such as `DATA_BATCH`.
        #[prost(string, optional, tag = "3")]
        pub denotation: Option<String>,
        /// Its length; missing where nothing is known.
        #[prost(oneof = "dimension::Value", tags = "1, 2")]
        pub value: Option<dimension::Value>,
    }

    /// Parts of [`Dimension`].
    pub mod dimension {
        /// Length of a dimension.
        #[derive(Clone, PartialEq, prost::Oneof)]
        pub enum Value {
            /// A known length, in elements.
            #[prost(int64, tag = "1")]
            DimValue(i64),
            /// A symbol: equal names mean equal lengths within the graph. Exporters write sums here too.
            #[prost(string, tag = "2")]
            DimParam(String),
        }
    }
}

/// The type of a value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypeProto {
    /// What the value stands for, by a standard name such as `TENSOR` or `IMAGE`.
    #[prost(string, optional, tag = "6")]
    pub denotation: Option<String>,
    /// The type itself.
    #[prost(oneof = "type_proto::Value", tags = "1, 4, 5, 9, 8, 7")]
    pub value: Option<type_proto::Value>,
}

/// Parts of [`TypeProto`].
pub mod type_proto {
    /// A dense tensor.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Tensor {
        /// Element type, as [`super::tensor_proto::DataType`]. Required.
        #[prost(int32, optional, tag = "1")]
        pub elem_type: Option<i32>,
        /// The shape; missing where not even the rank is known.
        #[prost(message, optional, tag = "2")]
        pub shape: Option<super::TensorShapeProto>,
    }

    /// A list of values of one type.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sequence {
        /// Type of the elements. Required.
        #[prost(message, optional, boxed, tag = "1")]
        pub elem_type: Option<Box<super::TypeProto>>,
    }

    /// A dictionary.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Map {
        /// Type of the keys, an integer type or `STRING` of [`super::tensor_proto::DataType`]. Required.
        #[prost(int32, optional, tag = "1")]
        pub key_type: Option<i32>,
        /// Type of the values. Required.
        #[prost(message, optional, boxed, tag = "2")]
        pub value_type: Option<Box<super::TypeProto>>,
    }

    /// A value that may be missing while the model runs.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Optional {
        /// Type of the value where there is one. Required.
        #[prost(message, optional, boxed, tag = "1")]
        pub elem_type: Option<Box<super::TypeProto>>,
    }

    /// A sparse tensor.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct SparseTensor {
        /// Element type, as [`super::tensor_proto::DataType`]. Required.
        #[prost(int32, optional, tag = "1")]
        pub elem_type: Option<i32>,
        /// Shape of the whole tensor; missing where not even the rank is known.
        #[prost(message, optional, tag = "2")]
        pub shape: Option<super::TensorShapeProto>,
    }

    /// A type that only its domain understands.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Opaque {
        /// The domain that defines it; missing: that of the model.
        #[prost(string, optional, tag = "1")]
        pub domain: Option<String>,
        /// Name of the type in that domain.
        #[prost(string, optional, tag = "2")]
        pub name: Option<String>,
    }

    /// The kinds of type.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Value {
        /// A dense tensor.
        #[prost(message, tag = "1")]
        TensorType(super::type_proto::Tensor),
        /// A list.
        #[prost(message, tag = "4")]
        SequenceType(Box<super::type_proto::Sequence>),
        /// A dictionary.
        #[prost(message, tag = "5")]
        MapType(Box<super::type_proto::Map>),
        /// A value or none.
        #[prost(message, tag = "9")]
        OptionalType(Box<super::type_proto::Optional>),
        /// A sparse tensor.
        #[prost(message, tag = "8")]
        SparseTensorType(super::type_proto::SparseTensor),
        /// Something of a domain's own.
        #[prost(message, tag = "7")]
        OpaqueType(super::type_proto::Opaque),
    }
}

/// An operator set and its version.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OperatorSetIdProto {
    /// The operator set. Missing or empty: the standard one.
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    /// Its version: operators mean what the newest definition up to this one says. Required.
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

/// An operator that the model defines by a list of nodes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FunctionProto {
    /// Its name, which nodes give as `op_type`.
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
    /// Attributes with a default. No name stands here and in `attribute`.
    #[prost(message, repeated, tag = "11")]
    pub attribute_proto: Vec<AttributeProto>,
    /// The body, every node after those whose outputs it reads.
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<NodeProto>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "8")]
    pub doc_string: Option<String>,
    /// Operator sets of the body; one entry a domain.
    #[prost(message, repeated, tag = "9")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// Its domain, which nodes give as theirs.
    #[prost(string, optional, tag = "10")]
    pub domain: Option<String>,
    /// Tells functions of one domain and name apart.
    #[prost(string, optional, tag = "13")]
    pub overload: Option<String>,
    /// Types and shapes of values in the body; no name stands twice.
    #[prost(message, repeated, tag = "12")]
    pub value_info: Vec<ValueInfoProto>,
    /// Notes for tools; no key stands twice.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// Versions of the file format, for [`ModelProto::ir_version`]. Dated ones are named by their day of publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Version {
    /// No version: proto3 wants an enumeration to start at 0.
    StartVersion = 0,
    /// IR 1: attributes carry no type.
    IrVersion20171010 = 1,
    /// IR 2: attributes say which value they hold.
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
    /// IR 11: `FLOAT4E2M1`; several devices.
    IrVersion20250512 = 11,
    /// IR 12: `FLOAT8E8M0`.
    IrVersion20250826 = 12,
    /// IR 13: 2-bit integers.
    IrVersion20251106 = 13,
    /// IR 14, the newest known here: 6-bit floats.
    IrVersion = 14,
}

/// How settled the definition of an operator is. No field uses it since IR 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum OperatorStatus {
    /// It may change.
    Experimental = 0,
    /// It stays.
    Stable = 1,
}
