//! The facts of stored tensors.

use tract_data::prelude::TDim;

use crate::facts::content::{Content, LONGEST};
use crate::facts::{Fact, Shape, shapes};
use crate::onnx::stored::Model;
use crate::onnx::{TensorProto, tensor_proto::DataType};

/// The fact of a stored tensor: its type, its shape and, if it is small, its elements.
pub fn of_tensor(model: &Model, tensor: &TensorProto) -> Fact {
    let shape: Shape = tensor.dims.iter().map(|&n| TDim::Val(n)).collect();
    Fact::new(tensor.data_type, shapes::sizes(&shape)).holding(elements(model, tensor))
}

fn elements(model: &Model, tensor: &TensorProto) -> Option<Content> {
    let count = tensor
        .dims
        .iter()
        .try_fold(1i64, |n, &d| n.checked_mul(d))?;
    if !(0..=LONGEST as i64).contains(&count) {
        return None;
    }
    let kind = DataType::try_from(tensor.data_type()).ok()?;
    // Bytes are read only for the types that constant folding supports.
    let read = || model.tensor_bytes(tensor).ok();
    let ints = |values: Vec<i64>| Some(Content::Ints(values.into_iter().map(TDim::Val).collect()));
    match kind {
        DataType::Int64 => ints(chunks(&read()?).map(i64::from_le_bytes).collect()),
        DataType::Int32 => ints(
            chunks(&read()?)
                .map(|b| i32::from_le_bytes(b).into())
                .collect(),
        ),
        DataType::Bool | DataType::Uint8 => ints(read()?.iter().map(|&b| b.into()).collect()),
        DataType::Float => Some(Content::Floats(
            chunks(&read()?)
                .map(|b| f32::from_le_bytes(b).into())
                .collect(),
        )),
        DataType::Double => Some(Content::Floats(
            chunks(&read()?).map(f64::from_le_bytes).collect(),
        )),
        DataType::Float16 => Some(Content::Floats(
            chunks(&read()?)
                .map(|b| half::f16::from_le_bytes(b).into())
                .collect(),
        )),
        DataType::Bfloat16 => Some(Content::Floats(
            chunks(&read()?)
                .map(|b| half::bf16::from_le_bytes(b).into())
                .collect(),
        )),
        _ => None,
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.chunks_exact(N).filter_map(|c| c.try_into().ok())
}
