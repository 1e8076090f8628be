//! Conversion of factors to initializers of the model's element type.

use bytes::Bytes;
use ndarray::ArrayView;

use crate::onnx::{TensorProto, tensor_proto::DataType};

/// A factor is out of the range of the model's element type.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("'{name}' holds {value:e}, which does not fit {kind}")]
pub struct TensorRange {
    /// Name of the initializer.
    pub name: String,
    /// Its largest element.
    pub value: f64,
    /// Name of the type.
    pub kind: &'static str,
}

/// `values` as an initializer of element type `elem_type`, rounded to nearest.
///
/// # Errors
/// [`TensorRange`] if an element is out of range or NaN.
pub fn tensor<D: ndarray::Dimension>(
    name: &str,
    elem_type: i32,
    values: &ArrayView<f64, D>,
) -> Result<TensorProto, TensorRange> {
    let (kind, limit) = match DataType::try_from(elem_type) {
        Ok(DataType::Float16) => ("fp16", 65504.0),
        Ok(DataType::Bfloat16) => ("bf16", f64::from(half::bf16::MAX)),
        Ok(DataType::Double) => ("fp64", f64::MAX),
        _ => ("fp32", f64::from(f32::MAX)),
    };
    let largest = values
        .iter()
        .fold(0.0f64, |m, v| if v.abs() <= m { m } else { v.abs() });
    if largest.is_nan() || largest > limit {
        return Err(TensorRange {
            name: name.to_owned(),
            value: largest,
            kind,
        });
    }
    let mut bytes = Vec::with_capacity(values.len() * 4);
    for &value in values {
        match kind {
            "fp16" => bytes.extend(half::f16::from_f64(value).to_le_bytes()),
            "bf16" => bytes.extend(half::bf16::from_f64(value).to_le_bytes()),
            "fp64" => bytes.extend(value.to_le_bytes()),
            _ => bytes.extend((value as f32).to_le_bytes()),
        }
    }
    Ok(TensorProto {
        name: Some(name.to_owned()),
        dims: values.shape().iter().map(|&n| n as i64).collect(),
        data_type: Some(elem_type),
        raw_data: Some(Bytes::from(bytes)),
        ..TensorProto::default()
    })
}
