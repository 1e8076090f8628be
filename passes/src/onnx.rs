//! ONNX messages.
/// AttributeProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttributeProto {
    /// name
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// ref_attr_name
    #[prost(string, optional, tag = "21")]
    pub ref_attr_name: Option<String>,
    /// doc_string
    #[prost(string, optional, tag = "13")]
    pub doc_string: Option<String>,
    /// type
    #[prost(enumeration = "attribute_proto::AttributeType", optional, tag = "20")]
    pub r#type: Option<i32>,
    /// f
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    /// i
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    /// s
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub s: Option<bytes::Bytes>,
    /// t
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    /// g
    #[prost(message, optional, tag = "6")]
    pub g: Option<GraphProto>,
    /// sparse_tensor
    #[prost(message, optional, tag = "22")]
    pub sparse_tensor: Option<SparseTensorProto>,
    /// tp
    #[prost(message, optional, tag = "14")]
    pub tp: Option<TypeProto>,
    /// floats
    #[prost(float, repeated, packed = "false", tag = "7")]
    pub floats: Vec<f32>,
    /// ints
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    /// strings
    #[prost(bytes = "bytes", repeated, tag = "9")]
    pub strings: Vec<bytes::Bytes>,
    /// tensors
    #[prost(message, repeated, tag = "10")]
    pub tensors: Vec<TensorProto>,
    /// graphs
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<GraphProto>,
    /// sparse_tensors
    #[prost(message, repeated, tag = "23")]
    pub sparse_tensors: Vec<SparseTensorProto>,
    /// type_protos
    #[prost(message, repeated, tag = "15")]
    pub type_protos: Vec<TypeProto>,
}
/// Parts of [`AttributeProto`].
pub mod attribute_proto {
    /// AttributeType
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum AttributeType {
        /// UNDEFINED
        Undefined = 0,
        /// FLOAT
        Float = 1,
        /// INT
        Int = 2,
        /// STRING
        String = 3,
        /// TENSOR
        Tensor = 4,
        /// GRAPH
        Graph = 5,
        /// SPARSE_TENSOR
        SparseTensor = 11,
        /// TYPE_PROTO
        TypeProto = 13,
        /// FLOATS
        Floats = 6,
        /// INTS
        Ints = 7,
        /// STRINGS
        Strings = 8,
        /// TENSORS
        Tensors = 9,
        /// GRAPHS
        Graphs = 10,
        /// SPARSE_TENSORS
        SparseTensors = 12,
        /// TYPE_PROTOS
        TypeProtos = 14,
    }
}
/// ValueInfoProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueInfoProto {
    /// name
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// type
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
    /// doc_string
    #[prost(string, optional, tag = "3")]
    pub doc_string: Option<String>,
    /// metadata_props
    #[prost(message, repeated, tag = "4")]
    pub metadata_props: Vec<StringStringEntryProto>,
}
/// NodeProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeProto {
    /// input
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// output
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// name
    #[prost(string, optional, tag = "3")]
    pub name: Option<String>,
    /// op_type
    #[prost(string, optional, tag = "4")]
    pub op_type: Option<String>,
    /// domain
    #[prost(string, optional, tag = "7")]
    pub domain: Option<String>,
    /// overload
    #[prost(string, optional, tag = "8")]
    pub overload: Option<String>,
    /// attribute
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// doc_string
    #[prost(string, optional, tag = "6")]
    pub doc_string: Option<String>,
    /// metadata_props
    #[prost(message, repeated, tag = "9")]
    pub metadata_props: Vec<StringStringEntryProto>,
    /// device_configurations
    #[prost(message, repeated, tag = "10")]
    pub device_configurations: Vec<NodeDeviceConfigurationProto>,
}
/// IntIntListEntryProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct IntIntListEntryProto {
    /// key
    #[prost(int64, optional, tag = "1")]
    pub key: Option<i64>,
    /// value
    #[prost(int64, repeated, packed = "false", tag = "2")]
    pub value: Vec<i64>,
}
/// NodeDeviceConfigurationProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeDeviceConfigurationProto {
    /// configuration_id
    #[prost(string, optional, tag = "1")]
    pub configuration_id: Option<String>,
    /// sharding_spec
    #[prost(message, repeated, tag = "2")]
    pub sharding_spec: Vec<ShardingSpecProto>,
    /// pipeline_stage
    #[prost(int32, optional, tag = "3")]
    pub pipeline_stage: Option<i32>,
}
/// ShardingSpecProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardingSpecProto {
    /// tensor_name
    #[prost(string, optional, tag = "1")]
    pub tensor_name: Option<String>,
    /// device
    #[prost(int64, repeated, packed = "false", tag = "2")]
    pub device: Vec<i64>,
    /// index_to_device_group_map
    #[prost(message, repeated, tag = "3")]
    pub index_to_device_group_map: Vec<IntIntListEntryProto>,
    /// sharded_dim
    #[prost(message, repeated, tag = "4")]
    pub sharded_dim: Vec<ShardedDimProto>,
}
/// ShardedDimProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardedDimProto {
    /// axis
    #[prost(int64, optional, tag = "1")]
    pub axis: Option<i64>,
    /// simple_sharding
    #[prost(message, repeated, tag = "2")]
    pub simple_sharding: Vec<SimpleShardedDimProto>,
}
/// SimpleShardedDimProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct SimpleShardedDimProto {
    /// num_shards
    #[prost(int64, optional, tag = "3")]
    pub num_shards: Option<i64>,
    /// dim
    #[prost(oneof = "simple_sharded_dim_proto::Dim", tags = "1, 2")]
    pub dim: Option<simple_sharded_dim_proto::Dim>,
}
/// Parts of [`SimpleShardedDimProto`].
pub mod simple_sharded_dim_proto {
    /// dim
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Dim {
        /// dim_value
        #[prost(int64, tag = "1")]
        DimValue(i64),
        /// dim_param
        #[prost(string, tag = "2")]
        DimParam(String),
    }
}
/// TrainingInfoProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct TrainingInfoProto {
    /// initialization
    #[prost(message, optional, tag = "1")]
    pub initialization: Option<GraphProto>,
    /// algorithm
    #[prost(message, optional, tag = "2")]
    pub algorithm: Option<GraphProto>,
    /// initialization_binding
    #[prost(message, repeated, tag = "3")]
    pub initialization_binding: Vec<StringStringEntryProto>,
    /// update_binding
    #[prost(message, repeated, tag = "4")]
    pub update_binding: Vec<StringStringEntryProto>,
}
/// ModelProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelProto {
    /// ir_version
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    /// opset_import
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// producer_name
    #[prost(string, optional, tag = "2")]
    pub producer_name: Option<String>,
    /// producer_version
    #[prost(string, optional, tag = "3")]
    pub producer_version: Option<String>,
    /// domain
    #[prost(string, optional, tag = "4")]
    pub domain: Option<String>,
    /// model_version
    #[prost(int64, optional, tag = "5")]
    pub model_version: Option<i64>,
    /// doc_string
    #[prost(string, optional, tag = "6")]
    pub doc_string: Option<String>,
    /// graph
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// metadata_props
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
    /// training_info
    #[prost(message, repeated, tag = "20")]
    pub training_info: Vec<TrainingInfoProto>,
    /// functions
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
    /// configuration
    #[prost(message, repeated, tag = "26")]
    pub configuration: Vec<DeviceConfigurationProto>,
}
/// DeviceConfigurationProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeviceConfigurationProto {
    /// name
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// num_devices
    #[prost(int32, optional, tag = "2")]
    pub num_devices: Option<i32>,
    /// device
    #[prost(string, repeated, tag = "3")]
    pub device: Vec<String>,
}
/// StringStringEntryProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct StringStringEntryProto {
    /// key
    #[prost(string, optional, tag = "1")]
    pub key: Option<String>,
    /// value
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}
/// TensorAnnotation
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorAnnotation {
    /// tensor_name
    #[prost(string, optional, tag = "1")]
    pub tensor_name: Option<String>,
    /// quant_parameter_tensor_names
    #[prost(message, repeated, tag = "2")]
    pub quant_parameter_tensor_names: Vec<StringStringEntryProto>,
}
/// GraphProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct GraphProto {
    /// node
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// name
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
    /// initializer
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// sparse_initializer
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializer: Vec<SparseTensorProto>,
    /// doc_string
    #[prost(string, optional, tag = "10")]
    pub doc_string: Option<String>,
    /// input
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// output
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
    /// value_info
    #[prost(message, repeated, tag = "13")]
    pub value_info: Vec<ValueInfoProto>,
    /// quantization_annotation
    #[prost(message, repeated, tag = "14")]
    pub quantization_annotation: Vec<TensorAnnotation>,
    /// metadata_props
    #[prost(message, repeated, tag = "16")]
    pub metadata_props: Vec<StringStringEntryProto>,
}
/// TensorProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorProto {
    /// dims
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    /// data_type
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    /// segment
    #[prost(message, optional, tag = "3")]
    pub segment: Option<tensor_proto::Segment>,
    /// float_data
    #[prost(float, repeated, packed = "true", tag = "4")]
    pub float_data: Vec<f32>,
    /// int32_data
    #[prost(int32, repeated, packed = "true", tag = "5")]
    pub int32_data: Vec<i32>,
    /// string_data
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub string_data: Vec<bytes::Bytes>,
    /// int64_data
    #[prost(int64, repeated, packed = "true", tag = "7")]
    pub int64_data: Vec<i64>,
    /// name
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    /// doc_string
    #[prost(string, optional, tag = "12")]
    pub doc_string: Option<String>,
    /// raw_data
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub raw_data: Option<bytes::Bytes>,
    /// external_data
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// data_location
    #[prost(enumeration = "tensor_proto::DataLocation", optional, tag = "14")]
    pub data_location: Option<i32>,
    /// double_data
    #[prost(double, repeated, packed = "true", tag = "10")]
    pub double_data: Vec<f64>,
    /// uint64_data
    #[prost(uint64, repeated, packed = "true", tag = "11")]
    pub uint64_data: Vec<u64>,
    /// metadata_props
    #[prost(message, repeated, tag = "16")]
    pub metadata_props: Vec<StringStringEntryProto>,
}
/// Parts of [`TensorProto`].
pub mod tensor_proto {
    /// Segment
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Segment {
        /// begin
        #[prost(int64, optional, tag = "1")]
        pub begin: Option<i64>,
        /// end
        #[prost(int64, optional, tag = "2")]
        pub end: Option<i64>,
    }
    /// DataType
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum DataType {
        /// UNDEFINED
        Undefined = 0,
        /// FLOAT
        Float = 1,
        /// UINT8
        Uint8 = 2,
        /// INT8
        Int8 = 3,
        /// UINT16
        Uint16 = 4,
        /// INT16
        Int16 = 5,
        /// INT32
        Int32 = 6,
        /// INT64
        Int64 = 7,
        /// STRING
        String = 8,
        /// BOOL
        Bool = 9,
        /// FLOAT16
        Float16 = 10,
        /// DOUBLE
        Double = 11,
        /// UINT32
        Uint32 = 12,
        /// UINT64
        Uint64 = 13,
        /// COMPLEX64
        Complex64 = 14,
        /// COMPLEX128
        Complex128 = 15,
        /// BFLOAT16
        Bfloat16 = 16,
        /// FLOAT8E4M3FN
        Float8e4m3fn = 17,
        /// FLOAT8E4M3FNUZ
        Float8e4m3fnuz = 18,
        /// FLOAT8E5M2
        Float8e5m2 = 19,
        /// FLOAT8E5M2FNUZ
        Float8e5m2fnuz = 20,
        /// UINT4
        Uint4 = 21,
        /// INT4
        Int4 = 22,
        /// FLOAT4E2M1
        Float4e2m1 = 23,
        /// FLOAT8E8M0
        Float8e8m0 = 24,
        /// UINT2
        Uint2 = 25,
        /// INT2
        Int2 = 26,
        /// FLOAT6E2M3
        Float6e2m3 = 27,
        /// FLOAT6E3M2
        Float6e3m2 = 28,
    }
    /// DataLocation
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
    #[repr(i32)]
    pub enum DataLocation {
        /// DEFAULT
        Default = 0,
        /// EXTERNAL
        External = 1,
    }
}
/// SparseTensorProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct SparseTensorProto {
    /// values
    #[prost(message, optional, tag = "1")]
    pub values: Option<TensorProto>,
    /// indices
    #[prost(message, optional, tag = "2")]
    pub indices: Option<TensorProto>,
    /// dims
    #[prost(int64, repeated, packed = "false", tag = "3")]
    pub dims: Vec<i64>,
}
/// TensorShapeProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorShapeProto {
    /// dim
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<tensor_shape_proto::Dimension>,
}
/// Parts of [`TensorShapeProto`].
pub mod tensor_shape_proto {
    /// Dimension
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Dimension {
        /// denotation
        #[prost(string, optional, tag = "3")]
        pub denotation: Option<String>,
        /// value
        #[prost(oneof = "dimension::Value", tags = "1, 2")]
        pub value: Option<dimension::Value>,
    }
    /// Parts of [`Dimension`].
    pub mod dimension {
        /// value
        #[derive(Clone, PartialEq, prost::Oneof)]
        pub enum Value {
            /// dim_value
            #[prost(int64, tag = "1")]
            DimValue(i64),
            /// dim_param
            #[prost(string, tag = "2")]
            DimParam(String),
        }
    }
}
/// TypeProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypeProto {
    /// denotation
    #[prost(string, optional, tag = "6")]
    pub denotation: Option<String>,
    /// value
    #[prost(oneof = "type_proto::Value", tags = "1, 4, 5, 9, 8, 7")]
    pub value: Option<type_proto::Value>,
}
/// Parts of [`TypeProto`].
pub mod type_proto {
    /// Tensor
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Tensor {
        /// elem_type
        #[prost(int32, optional, tag = "1")]
        pub elem_type: Option<i32>,
        /// shape
        #[prost(message, optional, tag = "2")]
        pub shape: Option<super::TensorShapeProto>,
    }
    /// Sequence
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sequence {
        /// elem_type
        #[prost(message, optional, boxed, tag = "1")]
        pub elem_type: Option<Box<super::TypeProto>>,
    }
    /// Map
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Map {
        /// key_type
        #[prost(int32, optional, tag = "1")]
        pub key_type: Option<i32>,
        /// value_type
        #[prost(message, optional, boxed, tag = "2")]
        pub value_type: Option<Box<super::TypeProto>>,
    }
    /// Optional
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Optional {
        /// elem_type
        #[prost(message, optional, boxed, tag = "1")]
        pub elem_type: Option<Box<super::TypeProto>>,
    }
    /// SparseTensor
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct SparseTensor {
        /// elem_type
        #[prost(int32, optional, tag = "1")]
        pub elem_type: Option<i32>,
        /// shape
        #[prost(message, optional, tag = "2")]
        pub shape: Option<super::TensorShapeProto>,
    }
    /// Opaque
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Opaque {
        /// domain
        #[prost(string, optional, tag = "1")]
        pub domain: Option<String>,
        /// name
        #[prost(string, optional, tag = "2")]
        pub name: Option<String>,
    }
    /// value
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Value {
        /// tensor_type
        #[prost(message, tag = "1")]
        TensorType(super::type_proto::Tensor),
        /// sequence_type
        #[prost(message, tag = "4")]
        SequenceType(Box<super::type_proto::Sequence>),
        /// map_type
        #[prost(message, tag = "5")]
        MapType(Box<super::type_proto::Map>),
        /// optional_type
        #[prost(message, tag = "9")]
        OptionalType(Box<super::type_proto::Optional>),
        /// sparse_tensor_type
        #[prost(message, tag = "8")]
        SparseTensorType(super::type_proto::SparseTensor),
        /// opaque_type
        #[prost(message, tag = "7")]
        OpaqueType(super::type_proto::Opaque),
    }
}
/// OperatorSetIdProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct OperatorSetIdProto {
    /// domain
    #[prost(string, optional, tag = "1")]
    pub domain: Option<String>,
    /// version
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}
/// FunctionProto
#[derive(Clone, PartialEq, prost::Message)]
pub struct FunctionProto {
    /// name
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// input
    #[prost(string, repeated, tag = "4")]
    pub input: Vec<String>,
    /// output
    #[prost(string, repeated, tag = "5")]
    pub output: Vec<String>,
    /// attribute
    #[prost(string, repeated, tag = "6")]
    pub attribute: Vec<String>,
    /// attribute_proto
    #[prost(message, repeated, tag = "11")]
    pub attribute_proto: Vec<AttributeProto>,
    /// node
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<NodeProto>,
    /// doc_string
    #[prost(string, optional, tag = "8")]
    pub doc_string: Option<String>,
    /// opset_import
    #[prost(message, repeated, tag = "9")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// domain
    #[prost(string, optional, tag = "10")]
    pub domain: Option<String>,
    /// overload
    #[prost(string, optional, tag = "13")]
    pub overload: Option<String>,
    /// value_info
    #[prost(message, repeated, tag = "12")]
    pub value_info: Vec<ValueInfoProto>,
    /// metadata_props
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}
/// Version
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Version {
    /// _START_VERSION
    StartVersion = 0,
    /// IR_VERSION_2017_10_10
    IrVersion20171010 = 1,
    /// IR_VERSION_2017_10_30
    IrVersion20171030 = 2,
    /// IR_VERSION_2017_11_3
    IrVersion2017113 = 3,
    /// IR_VERSION_2019_1_22
    IrVersion2019122 = 4,
    /// IR_VERSION_2019_3_18
    IrVersion2019318 = 5,
    /// IR_VERSION_2019_9_19
    IrVersion2019919 = 6,
    /// IR_VERSION_2020_5_8
    IrVersion202058 = 7,
    /// IR_VERSION_2021_7_30
    IrVersion2021730 = 8,
    /// IR_VERSION_2023_5_5
    IrVersion202355 = 9,
    /// IR_VERSION_2024_3_25
    IrVersion2024325 = 10,
    /// IR_VERSION_2025_05_12
    IrVersion20250512 = 11,
    /// IR_VERSION_2025_08_26
    IrVersion20250826 = 12,
    /// IR_VERSION_2025_11_06
    IrVersion20251106 = 13,
    /// IR_VERSION
    IrVersion = 14,
}
/// OperatorStatus
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum OperatorStatus {
    /// EXPERIMENTAL
    Experimental = 0,
    /// STABLE
    Stable = 1,
}
