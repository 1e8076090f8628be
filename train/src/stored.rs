//! Conversion between stored tensors and tensors of the tensor library.
//!
//! Training is in fp32: stored fp16 and bf16 tensors are converted, and trained tensors are rounded when they are
//! written back. Integers become I64; booleans and bytes become U8.

use std::collections::HashMap;

use bytes::Bytes;
use candle_core::{Device, Tensor};
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::onnx::{GraphProto, TensorProto, tensor_proto::DataType};
use half::{bf16, f16};

use crate::error::TrainError;

/// The shape of a stored tensor.
#[must_use]
pub fn dims(tensor: &TensorProto) -> Vec<usize> {
    tensor.dims.iter().map(|&d| d.max(0) as usize).collect()
}

/// Reads the initializers `names` of `graph`, which belongs to `model`.
///
/// # Errors
/// [`TrainError::NoParameter`], and those of [`read`].
pub fn initializers(
    model: &Model,
    graph: &GraphProto,
    names: &[String],
) -> Result<Vec<Tensor>, TrainError> {
    let stored: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|t| (t.name(), t)).collect();
    let tensor = |name: &String| match stored.get(name.as_str()) {
        Some(tensor) => read(model, tensor),
        None => Err(TrainError::NoParameter(name.clone())),
    };
    names.iter().map(tensor).collect()
}

/// Reads a stored tensor of `model`.
///
/// # Errors
/// [`TrainError::Stored`] if the bytes cannot be read, [`TrainError::ElementType`] for unsupported types.
pub fn read(model: &Model, tensor: &TensorProto) -> Result<Tensor, TrainError> {
    let bytes = model.tensor_bytes(tensor)?;
    let dims = dims(tensor);
    let unknown = || TrainError::ElementType {
        name: tensor.name().to_owned(),
        data_type: tensor.data_type(),
    };
    let data_type = DataType::try_from(tensor.data_type()).map_err(|_| unknown())?;
    let device = &Device::Cpu;
    let floats = |values: Vec<f32>| Tensor::from_vec(values, dims.as_slice(), device);
    let integers = |values: Vec<i64>| Tensor::from_vec(values, dims.as_slice(), device);
    Ok(match data_type {
        DataType::Float => floats(elements(&bytes, f32::from_le_bytes)),
        DataType::Float16 => floats(elements(&bytes, |b| f16::from_le_bytes(b).to_f32())),
        DataType::Bfloat16 => floats(elements(&bytes, |b| bf16::from_le_bytes(b).to_f32())),
        DataType::Double => floats(elements(&bytes, |b| f64::from_le_bytes(b) as f32)),
        DataType::Int64 => integers(elements(&bytes, i64::from_le_bytes)),
        DataType::Int32 => integers(elements(&bytes, |b| i32::from_le_bytes(b).into())),
        DataType::Int16 => integers(elements(&bytes, |b| i16::from_le_bytes(b).into())),
        DataType::Int8 => integers(elements(&bytes, |b| i8::from_le_bytes(b).into())),
        DataType::Uint32 => integers(elements(&bytes, |b| u32::from_le_bytes(b).into())),
        DataType::Uint16 => integers(elements(&bytes, |b| u16::from_le_bytes(b).into())),
        DataType::Int4 => integers(halves(&bytes, &dims, |n| i64::from((n << 4) as i8 >> 4))),
        DataType::Uint4 => {
            let values = halves(&bytes, &dims, |n| n);
            Tensor::from_vec(values, dims.as_slice(), device)
        }
        DataType::Uint8 | DataType::Bool => {
            Tensor::from_vec(bytes.to_vec(), dims.as_slice(), device)
        }
        _ => return Err(unknown()),
    }?)
}

/// Replaces the elements of `tensor` by `values`, rounded to its type. Type, shape and name are kept.
///
/// # Errors
/// [`TrainError::ElementType`] if the type is not fp32, fp16 or bf16, or a value is out of its range.
pub fn write(tensor: &mut TensorProto, values: &[f32]) -> Result<(), TrainError> {
    let bytes: Option<Vec<u8>> = match DataType::try_from(tensor.data_type()) {
        Ok(DataType::Float) => Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Ok(DataType::Float16) => {
            let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
            let finite = halves
                .iter()
                .zip(values)
                .all(|(h, v)| h.is_finite() || !v.is_finite());
            finite.then(|| halves.iter().flat_map(|h| h.to_le_bytes()).collect())
        }
        Ok(DataType::Bfloat16) => {
            let bytes = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes());
            Some(bytes.collect())
        }
        _ => None,
    };
    let bytes = bytes.ok_or_else(|| TrainError::ElementType {
        name: tensor.name().to_owned(),
        data_type: tensor.data_type(),
    })?;
    *tensor = TensorProto {
        name: tensor.name.take(),
        doc_string: tensor.doc_string.take(),
        dims: std::mem::take(&mut tensor.dims),
        data_type: tensor.data_type,
        metadata_props: std::mem::take(&mut tensor.metadata_props),
        raw_data: Some(Bytes::from(bytes)),
        ..TensorProto::default()
    };
    Ok(())
}

/// Two integers of 4 bits in each byte, the first in the lower half.
fn halves<T>(bytes: &[u8], dims: &[usize], of: impl Fn(u8) -> T) -> Vec<T> {
    let all = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
    all.take(dims.iter().product()).map(of).collect()
}

fn elements<const N: usize, T>(bytes: &[u8], of: impl Fn([u8; N]) -> T) -> Vec<T> {
    let mut chunks = Vec::with_capacity(bytes.len() / N.max(1));
    for chunk in bytes.chunks_exact(N) {
        let mut one = [0; N];
        one.copy_from_slice(chunk);
        chunks.push(of(one));
    }
    chunks
}
