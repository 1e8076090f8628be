//! Constant tensors.

use crate::onnx::StringStringEntryProto;

/// A constant tensor, with its elements in one of the data fields or in another file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorProto {
    /// The shape, outermost dimension first; empty for a scalar. Unpacked: one key for each dimension.
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    /// Element type, as [`tensor_proto::DataType`]. Required.
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    /// The part of a larger tensor that this one holds. Not used in practice.
    #[prost(message, optional, tag = "3")]
    pub segment: Option<tensor_proto::Segment>,
    /// Elements of `FLOAT`; `COMPLEX64` takes two entries, real part first. Packed.
    #[prost(float, repeated, packed = "true", tag = "4")]
    pub float_data: Vec<f32>,
    /// Elements of `INT32` and of all narrower types but strings, one per entry; floats narrower than 32 bits are
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
    /// The name of the value, if the tensor is an initializer.
    #[prost(string, optional, tag = "8")]
    pub name: Option<String>,
    /// Text for people, possibly Markdown.
    #[prost(string, optional, tag = "12")]
    pub doc_string: Option<String>,
    /// The elements of any type but `STRING`: row-major, little-endian, narrow types filled in from the lowest bits,
    /// four 6-bit elements to three bytes. It is used instead of the typed fields.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub raw_data: Option<bytes::Bytes>,
    /// Location of the bytes of an external tensor: `location`, a path relative to the model's folder; `offset` and
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
    /// Key-value metadata for tools; keys are unique.
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
        /// Unspecified; not allowed for tensors.
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
    /// Their indices, ascending: INT64 `[stored]` into the flattened tensor, or `[stored, rank]`.
    #[prost(message, optional, tag = "2")]
    pub indices: Option<TensorProto>,
    /// Shape of the whole tensor. Unpacked: one key for each dimension.
    #[prost(int64, repeated, packed = "false", tag = "3")]
    pub dims: Vec<i64>,
}
