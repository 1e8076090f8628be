//! A model in memory: the decoded messages, and the data files of its external tensors.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
    tensor_proto::{DataLocation, DataType},
};

/// A decoded model. External weights are ranges of the data files.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The messages.
    pub proto: ModelProto,
    /// The bytes of each data file, by the location in the entries of external tensors.
    pub files: BTreeMap<String, Bytes>,
}

/// The error of a tensor whose bytes cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// An entry of `external_data` is invalid.
    #[error("tensor '{tensor}': external data entry '{key}' is '{value}', expected {expected}")]
    Entry {
        /// The tensor.
        tensor: String,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// The expected value.
        expected: &'static str,
    },
    /// The data file is not loaded.
    #[error("tensor '{tensor}': data file '{location}' is not loaded")]
    NoFile {
        /// The tensor.
        tensor: String,
        /// The location it names.
        location: String,
    },
    /// The range exceeds the data file.
    #[error(
        "tensor '{tensor}': data file '{location}' has {size} bytes, but bytes {offset} to {end} are needed: the file is truncated or belongs to another model"
    )]
    Range {
        /// The tensor.
        tensor: String,
        /// The location it names.
        location: String,
        /// Length of the file in bytes.
        size: u64,
        /// First byte.
        offset: u64,
        /// One past the last byte.
        end: u64,
    },
    /// The number of bytes does not fit type and shape.
    #[error(
        "tensor '{tensor}': {found} bytes are stored, but its type and shape {dims:?} need {needed}"
    )]
    Size {
        /// The tensor.
        tensor: String,
        /// Number of stored bytes.
        found: u64,
        /// The shape.
        dims: Vec<i64>,
        /// Number of bytes of a tensor of this type and shape.
        needed: u64,
    },
    /// The shape is negative or overflows, or the type has no fixed size.
    #[error("tensor '{tensor}': type {data_type} with shape {dims:?} has no size in bytes")]
    Shape {
        /// The tensor.
        tensor: String,
        /// `TensorProto.DataType`.
        data_type: i32,
        /// The shape.
        dims: Vec<i64>,
    },
}

/// The location of the bytes of an external tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct External {
    /// Path of the data file, relative to the model's folder.
    pub location: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; computed from type and shape if there is no `length` entry.
    pub length: u64,
}

impl External {
    /// Reads the `external_data` entries of `tensor`; `None` for an inline tensor.
    pub fn of(tensor: &TensorProto) -> Result<Option<Self>, TensorError> {
        if tensor.data_location() != DataLocation::External {
            return Ok(None);
        }
        let mut found: BTreeMap<&str, &str> = BTreeMap::new();
        let wrong = |key: &str, value: &str, expected| TensorError::Entry {
            tensor: tensor.name().to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
            expected,
        };
        for entry in &tensor.external_data {
            if found.insert(entry.key(), entry.value()).is_some() {
                return Err(wrong(entry.key(), entry.value(), "to stand only once"));
            }
        }
        let number = |key: &str| match found.get(key) {
            None => Ok(None),
            Some(text) => text
                .parse::<u64>()
                .map(Some)
                .map_err(|_| wrong(key, text, "a number of bytes")),
        };
        let location = found
            .get("location")
            .filter(|l| !l.is_empty())
            .ok_or_else(|| wrong("location", "", "the name of a file"))?;
        Ok(Some(Self {
            location: (*location).to_owned(),
            offset: number("offset")?.unwrap_or(0),
            // With a `length` entry, unknown element types are accepted.
            length: match number("length")? {
                Some(length) => length,
                None => byte_size(tensor)?,
            },
        }))
    }
}

impl Model {
    /// The bytes of `tensor`, little-endian and row-major. They are not copied, unless they are stored in typed fields.
    pub fn tensor_bytes(&self, tensor: &TensorProto) -> Result<Bytes, TensorError> {
        let bytes = match External::of(tensor)? {
            Some(external) => self.range(tensor, &external)?,
            None => match &tensor.raw_data {
                Some(raw) => raw.clone(),
                None => typed_fields(tensor),
            },
        };
        let needed = byte_size(tensor)?;
        if bytes.len() as u64 != needed {
            return Err(TensorError::Size {
                tensor: tensor.name().to_owned(),
                found: bytes.len() as u64,
                dims: tensor.dims.clone(),
                needed,
            });
        }
        Ok(bytes)
    }

    /// The bytes at `external`; `tensor` is named in errors.
    pub fn range(&self, tensor: &TensorProto, external: &External) -> Result<Bytes, TensorError> {
        let file = self
            .files
            .get(&external.location)
            .ok_or_else(|| TensorError::NoFile {
                tensor: tensor.name().to_owned(),
                location: external.location.clone(),
            })?;
        let end = external.offset.saturating_add(external.length);
        if end > file.len() as u64 {
            return Err(TensorError::Range {
                tensor: tensor.name().to_owned(),
                location: external.location.clone(),
                size: file.len() as u64,
                offset: external.offset,
                end,
            });
        }
        // Both bounds are at most the length of the file, which is a `usize`.
        Ok(file.slice(external.offset as usize..end as usize))
    }
}

/// Bits of one element of a `TensorProto.DataType`; `None` for strings and unknown types.
pub fn element_bits(data_type: i32) -> Option<u32> {
    Some(match DataType::try_from(data_type).ok()? {
        DataType::Uint2 | DataType::Int2 => 2,
        DataType::Uint4 | DataType::Int4 | DataType::Float4e2m1 => 4,
        DataType::Float6e2m3 | DataType::Float6e3m2 => 6,
        DataType::Uint8
        | DataType::Int8
        | DataType::Bool
        | DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz
        | DataType::Float8e8m0 => 8,
        DataType::Uint16 | DataType::Int16 | DataType::Float16 | DataType::Bfloat16 => 16,
        DataType::Float | DataType::Int32 | DataType::Uint32 => 32,
        DataType::Double | DataType::Int64 | DataType::Uint64 | DataType::Complex64 => 64,
        DataType::Complex128 => 128,
        DataType::Undefined | DataType::String => return None,
    })
}

/// Number of bytes of the elements of `tensor`; sub-byte elements are packed.
pub fn byte_size(tensor: &TensorProto) -> Result<u64, TensorError> {
    let size = || {
        let count = tensor
            .dims
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))?;
        let bits = count.checked_mul(element_bits(tensor.data_type())?.into())?;
        Some(bits.div_ceil(8))
    };
    size().ok_or_else(|| TensorError::Shape {
        tensor: tensor.name().to_owned(),
        data_type: tensor.data_type(),
        dims: tensor.dims.clone(),
    })
}

/// The bytes of an inline tensor, as [`Model::tensor_bytes`] returns them; `None` for external tensors, and if their
/// number does not fit type and shape.
pub fn inline_bytes(tensor: &TensorProto) -> Option<Bytes> {
    if tensor.data_location() == DataLocation::External {
        return None;
    }
    let raw = tensor.raw_data.clone();
    let bytes = raw.unwrap_or_else(|| typed_fields(tensor));
    (byte_size(tensor).ok()? == bytes.len() as u64).then_some(bytes)
}

/// The elements in the typed fields, as the bytes that `raw_data` would hold.
fn typed_fields(tensor: &TensorProto) -> Bytes {
    fn all<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> Bytes {
        values.flatten().collect::<Vec<u8>>().into()
    }
    let bits = element_bits(tensor.data_type()).unwrap_or(0);
    match DataType::try_from(tensor.data_type()) {
        Ok(DataType::Float | DataType::Complex64) => {
            all(tensor.float_data.iter().map(|v| v.to_le_bytes()))
        }
        Ok(DataType::Double | DataType::Complex128) => {
            all(tensor.double_data.iter().map(|v| v.to_le_bytes()))
        }
        Ok(DataType::Int64) => all(tensor.int64_data.iter().map(|v| v.to_le_bytes())),
        Ok(DataType::Uint64) => all(tensor.uint64_data.iter().map(|v| v.to_le_bytes())),
        Ok(DataType::Uint32) => all(tensor.uint64_data.iter().map(|v| (*v as u32).to_le_bytes())),
        _ => match bits {
            32 => all(tensor.int32_data.iter().map(|v| v.to_le_bytes())),
            16 => all(tensor.int32_data.iter().map(|v| (*v as u16).to_le_bytes())),
            // The typed field has one element per entry, `raw_data` four elements in three bytes.
            6 => tensor
                .int32_data
                .chunks(4)
                .flat_map(packed_six)
                .collect::<Vec<u8>>()
                .into(),
            // Other sub-byte elements are packed, one byte per entry.
            _ => all(tensor.int32_data.iter().map(|v| [*v as u8])),
        },
    }
}

/// Packs up to four 6-bit elements into bytes, little-endian.
fn packed_six(elements: &[i32]) -> impl Iterator<Item = u8> + use<> {
    let bits = elements
        .iter()
        .rev()
        .fold(0u32, |bits, &e| (bits << 6) | (e as u32 & 0x3f));
    let length = (elements.len() * 6).div_ceil(8);
    bits.to_le_bytes().into_iter().take(length)
}

/// The role of a visited tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorStorage {
    /// A dense tensor.
    Dense,
    /// The elements or indices of a sparse tensor, which the ONNX checker reads only if they are inline.
    Sparse,
}

/// Calls `visit` on every tensor of `model`: initializers, attributes, sparse tensors, subgraphs, functions, training.
pub fn visit_tensors<E>(
    model: &mut ModelProto,
    visit: &mut dyn FnMut(&mut TensorProto, TensorStorage) -> Result<(), E>,
) -> Result<(), E> {
    let training = model
        .training_info
        .iter_mut()
        .flat_map(|t| t.initialization.iter_mut().chain(t.algorithm.iter_mut()));
    for graph in model.graph.iter_mut().chain(training) {
        visit_graph(graph, visit)?;
    }
    for function in &mut model.functions {
        for node in &mut function.node {
            visit_node(node, visit)?;
        }
        for attribute in &mut function.attribute_proto {
            visit_attribute(attribute, visit)?;
        }
    }
    Ok(())
}

fn visit_graph<E>(
    graph: &mut GraphProto,
    visit: &mut dyn FnMut(&mut TensorProto, TensorStorage) -> Result<(), E>,
) -> Result<(), E> {
    for tensor in &mut graph.initializer {
        visit(tensor, TensorStorage::Dense)?;
    }
    for sparse in &mut graph.sparse_initializer {
        visit_sparse(sparse, visit)?;
    }
    for node in &mut graph.node {
        visit_node(node, visit)?;
    }
    Ok(())
}

fn visit_node<E>(
    node: &mut NodeProto,
    visit: &mut dyn FnMut(&mut TensorProto, TensorStorage) -> Result<(), E>,
) -> Result<(), E> {
    for attribute in &mut node.attribute {
        visit_attribute(attribute, visit)?;
    }
    Ok(())
}

fn visit_attribute<E>(
    attribute: &mut AttributeProto,
    visit: &mut dyn FnMut(&mut TensorProto, TensorStorage) -> Result<(), E>,
) -> Result<(), E> {
    for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
        visit(tensor, TensorStorage::Dense)?;
    }
    for sparse in attribute
        .sparse_tensor
        .iter_mut()
        .chain(&mut attribute.sparse_tensors)
    {
        visit_sparse(sparse, visit)?;
    }
    for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
        visit_graph(graph, visit)?;
    }
    Ok(())
}

fn visit_sparse<E>(
    sparse: &mut SparseTensorProto,
    visit: &mut dyn FnMut(&mut TensorProto, TensorStorage) -> Result<(), E>,
) -> Result<(), E> {
    for tensor in sparse.values.iter_mut().chain(sparse.indices.iter_mut()) {
        visit(tensor, TensorStorage::Sparse)?;
    }
    Ok(())
}
