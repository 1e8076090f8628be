//! Comparisons and logical operators. Booleans are U8 and have no gradient.

use candle_core::{DType, Tensor};

use crate::error::OpError;
use crate::operators::{Call, Computed, TrainOperator, stops};

pub const OPERATORS: &[TrainOperator] = &[
    stops("Equal", |c| pair(c, Tensor::broadcast_eq)),
    stops("Less", |c| pair(c, Tensor::broadcast_lt)),
    stops("LessOrEqual", |c| pair(c, Tensor::broadcast_le)),
    stops("Greater", |c| pair(c, Tensor::broadcast_gt)),
    stops("GreaterOrEqual", |c| pair(c, Tensor::broadcast_ge)),
    stops("And", |c| pair(c, Tensor::broadcast_minimum)),
    stops("Or", |c| pair(c, Tensor::broadcast_maximum)),
    stops("Xor", |c| pair(c, Tensor::broadcast_ne)),
    stops("IsNaN", is_nan),
    stops("IsInf", is_infinite),
];

type Compare = fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>;

fn pair(call: &Call, of: Compare) -> Result<Computed, OpError> {
    Ok(of(call.input(0)?, call.input(1)?)?.into())
}

fn is_nan(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?.contiguous()?;
    Ok(x.ne(&x)?.into())
}

fn is_infinite(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?.to_dtype(DType::F32)?;
    let is = |name: &str, end: f32| -> Result<Tensor, OpError> {
        match call.int(name, 1) {
            0 => Ok(x.zeros_like()?.to_dtype(DType::U8)?),
            _ => Ok(x.eq(end)?),
        }
    };
    let ends = [
        is("detect_positive", f32::INFINITY)?,
        is("detect_negative", f32::NEG_INFINITY)?,
    ];
    Ok(ends[0].maximum(&ends[1])?.into())
}
