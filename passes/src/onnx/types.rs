//! Types and shapes of values.

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
        /// Meaning of the dimension, as a standard name such as `DATA_BATCH`.
        #[prost(string, optional, tag = "3")]
        pub denotation: Option<String>,
        /// Its length; missing if unknown.
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
    /// Meaning of the value, as a standard name such as `TENSOR` or `IMAGE`.
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
        /// Element type, as [`crate::onnx::tensor_proto::DataType`]. Required.
        #[prost(int32, optional, tag = "1")]
        pub elem_type: Option<i32>,
        /// The shape; missing where not even the rank is known.
        #[prost(message, optional, tag = "2")]
        pub shape: Option<crate::onnx::TensorShapeProto>,
    }

    /// A list of values of one type.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sequence {
        /// Type of the elements. Required.
        #[prost(message, optional, boxed, tag = "1")]
        pub elem_type: Option<Box<crate::onnx::TypeProto>>,
    }

    /// A dictionary.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Map {
        /// Type of the keys, an integer type or `STRING` of [`crate::onnx::tensor_proto::DataType`]. Required.
        #[prost(int32, optional, tag = "1")]
        pub key_type: Option<i32>,
        /// Type of the values. Required.
        #[prost(message, optional, boxed, tag = "2")]
        pub value_type: Option<Box<crate::onnx::TypeProto>>,
    }

    /// A value that may be missing while the model runs.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Optional {
        /// Type of the value, if there is one. Required.
        #[prost(message, optional, boxed, tag = "1")]
        pub elem_type: Option<Box<crate::onnx::TypeProto>>,
    }

    /// A sparse tensor.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct SparseTensor {
        /// Element type, as [`crate::onnx::tensor_proto::DataType`]. Required.
        #[prost(int32, optional, tag = "1")]
        pub elem_type: Option<i32>,
        /// Shape of the whole tensor; missing where not even the rank is known.
        #[prost(message, optional, tag = "2")]
        pub shape: Option<crate::onnx::TensorShapeProto>,
    }

    /// A type that is defined by a domain.
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
        TensorType(crate::onnx::type_proto::Tensor),
        /// A list.
        #[prost(message, tag = "4")]
        SequenceType(Box<crate::onnx::type_proto::Sequence>),
        /// A dictionary.
        #[prost(message, tag = "5")]
        MapType(Box<crate::onnx::type_proto::Map>),
        /// A value or none.
        #[prost(message, tag = "9")]
        OptionalType(Box<crate::onnx::type_proto::Optional>),
        /// A sparse tensor.
        #[prost(message, tag = "8")]
        SparseTensorType(crate::onnx::type_proto::SparseTensor),
        /// A type that is defined by a domain.
        #[prost(message, tag = "7")]
        OpaqueType(crate::onnx::type_proto::Opaque),
    }
}
