//! `Shape`, constants, and conversions between element types.

use candle_core::{DType, Device, Tensor};
use gqa2mla_passes::graph::attribute;
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::onnx::tensor_proto::DataType;

use crate::error::{OpError, invalid};
use crate::operators::{Call, Computed, TrainOperator, axis, extent, flows, integers, stops};
use crate::stored;

pub const OPERATORS: &[TrainOperator] = &[
    stops("Shape", shape),
    stops("Size", size),
    stops("Constant", constant),
    stops("ConstantOfShape", constant_of_shape),
    stops("Range", range),
    stops("CumSum", running_sum),
    flows("Cast", cast),
    flows("CastLike", cast_like),
];

fn vector(values: Vec<i64>) -> Result<Tensor, OpError> {
    let count = values.len();
    Ok(Tensor::from_vec(values, count, &Device::Cpu)?)
}

fn shape(call: &Call) -> Result<Computed, OpError> {
    let dims = call.input(0)?.dims();
    let rank = dims.len() as i64;
    let bound =
        |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize;
    let (start, end) = (bound(call.int("start", 0)), bound(call.int("end", rank)));
    let taken = dims.get(start..end.max(start)).unwrap_or_default();
    Ok(vector(taken.iter().map(|&d| d as i64).collect())?.into())
}

fn size(call: &Call) -> Result<Computed, OpError> {
    let count = call.input(0)?.elem_count() as i64;
    Ok(Tensor::from_vec(vec![count], (), &Device::Cpu)?.into())
}

/// The tensor in attribute `name`, which must be inline.
fn stored_attribute(call: &Call, name: &str) -> Result<Option<Tensor>, OpError> {
    let Some(tensor) = attribute(call.node, name).and_then(|a| a.t.as_ref()) else {
        return Ok(None);
    };
    let read = stored::read(&Model::default(), tensor);
    read.map(Some).map_err(|e| OpError::Invalid(e.to_string()))
}

fn constant(call: &Call) -> Result<Computed, OpError> {
    if let Some(tensor) = stored_attribute(call, "value")? {
        return Ok(tensor.into());
    }
    let scalar = |name: &str| attribute(call.node, name);
    if let Some(value) = scalar("value_int") {
        return Ok(Tensor::from_vec(vec![value.i()], (), &Device::Cpu)?.into());
    }
    if let Some(value) = scalar("value_float") {
        return Ok(Tensor::from_vec(vec![value.f()], (), &Device::Cpu)?.into());
    }
    if let Some(values) = call.ints("value_ints") {
        return Ok(vector(values)?.into());
    }
    if let Some(values) = scalar("value_floats") {
        let floats = values.floats.clone();
        let count = floats.len();
        return Ok(Tensor::from_vec(floats, count, &Device::Cpu)?.into());
    }
    invalid("the constant is neither a tensor nor a number")
}

fn constant_of_shape(call: &Call) -> Result<Computed, OpError> {
    let dims: Vec<usize> = call
        .integers(0)?
        .unwrap_or_default()
        .iter()
        .map(|&d| d.max(0) as usize)
        .collect();
    let value = match stored_attribute(call, "value")? {
        Some(value) => value.reshape(())?,
        None => Tensor::zeros((), DType::F32, &Device::Cpu)?,
    };
    Ok(value.broadcast_as(dims)?.contiguous()?.into())
}

fn range(call: &Call) -> Result<Computed, OpError> {
    let one = |at: usize| -> Result<Tensor, OpError> { Ok(call.input(at)?.reshape(())?) };
    let (start, limit, delta) = (one(0)?, one(1)?, one(2)?);
    if start.dtype() == DType::I64 {
        let number = |t: Tensor| t.to_scalar::<i64>();
        let (start, limit, delta) = (number(start)?, number(limit)?, number(delta)?);
        let mut values = Vec::new();
        let mut next = start;
        while delta != 0 && (delta > 0) == (next < limit) && next != limit {
            values.push(next);
            next = next.saturating_add(delta);
        }
        return Ok(vector(values)?.into());
    }
    let number = |t: Tensor| -> Result<f32, OpError> { Ok(t.to_dtype(DType::F32)?.to_scalar()?) };
    let (start, limit, delta) = (number(start)?, number(limit)?, number(delta)?);
    let count = ((limit - start) / delta).ceil().max(0.0) as usize;
    let values: Vec<f32> = (0..count).map(|i| start + i as f32 * delta).collect();
    Ok(Tensor::from_vec(values, count, &Device::Cpu)?.into())
}

/// The cumulative sum of integers along an axis, by which positions are computed.
fn running_sum(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let named = call.integers(1)?.and_then(|a| a.first().copied());
    let at = axis(named.unwrap_or(0), x.rank())?;
    if x.dtype() != DType::I64 || call.int("exclusive", 0) != 0 || call.int("reverse", 0) != 0 {
        return invalid("sums are implemented for integers, forward and inclusive");
    }
    let turned = x.transpose(at, x.rank() - 1)?;
    let width = extent(turned.dims(), x.rank() - 1).max(1);
    let mut values = integers(&turned)?;
    for row in values.chunks_mut(width) {
        let mut sum = 0;
        for value in row {
            sum += *value;
            *value = sum;
        }
    }
    let sums = Tensor::from_vec(values, turned.dims(), &Device::Cpu)?;
    Ok(sums.transpose(at, x.rank() - 1)?.into())
}

/// Conversion to the type `wanted`. Casts between floating-point types do nothing, because all floats are fp32 in
/// training.
fn converted(call: &Call, wanted: DType) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    if x.dtype() == wanted {
        return Ok(call.made_of_first(x.clone(), |grad| Ok(grad.clone())));
    }
    // Integers have no gradient.
    Ok(x.to_dtype(wanted)?.into())
}

fn cast(call: &Call) -> Result<Computed, OpError> {
    let to = DataType::try_from(call.int("to", 0) as i32);
    match to {
        Ok(DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double) => {
            converted(call, DType::F32)
        }
        Ok(DataType::Int64 | DataType::Int32 | DataType::Int16 | DataType::Int8) => {
            converted(call, DType::I64)
        }
        Ok(DataType::Bool) if call.input(0)?.dtype() == DType::U8 => {
            Ok(call.input(0)?.ne(0u8)?.into())
        }
        Ok(DataType::Bool) if call.input(0)?.dtype() == DType::I64 => {
            Ok(call.input(0)?.ne(0i64)?.into())
        }
        Ok(DataType::Bool) => Ok(call.input(0)?.ne(0f32)?.into()),
        Ok(DataType::Uint8) => converted(call, DType::U8),
        _ => invalid(format!(
            "element type {} is not implemented",
            call.int("to", 0)
        )),
    }
}

fn cast_like(call: &Call) -> Result<Computed, OpError> {
    converted(call, call.input(1)?.dtype())
}
