//! Constant folding on small tensors: the arithmetic by which exporters compute shapes, indices and scales.

use tract_data::prelude::TDim;

use crate::facts::dim;
use crate::onnx::tensor_proto::DataType;

/// Largest number of elements of a folded tensor: shapes have a handful, index tables a few hundred.
pub const LONGEST: usize = 512;

/// Elements of one tensor, row-major.
#[derive(Debug, Clone)]
pub enum Content {
    /// Integers, booleans (0 and 1) and symbolic sizes.
    Ints(Vec<TDim>),
    /// Floats, each already rounded to the type of the tensor.
    Floats(Vec<f64>),
}

impl Content {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Ints(v) => v.len(),
            Self::Floats(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements at `indices`; `None` if one is out of range.
    pub fn pick(&self, indices: &[usize]) -> Option<Self> {
        Some(match self {
            Self::Ints(v) => Self::Ints(
                indices
                    .iter()
                    .map(|&i| v.get(i).cloned())
                    .collect::<Option<_>>()?,
            ),
            Self::Floats(v) => Self::Floats(
                indices
                    .iter()
                    .map(|&i| v.get(i).copied())
                    .collect::<Option<_>>()?,
            ),
        })
    }

    /// The elements of a tensor of shape `shape` filled with this single element; `None` if there are more than
    /// [`LONGEST`].
    pub fn repeated(&self, shape: &[TDim]) -> Option<Self> {
        let count = usize::try_from(dim::product(shape)?.as_i64()?).ok()?;
        (count <= LONGEST && self.len() == 1).then(|| self.pick(&vec![0; count]))?
    }
}

/// `value` rounded to the floating-point type `elem_type`.
pub fn round_to(elem_type: Option<i32>, value: f64) -> f64 {
    match elem_type.and_then(|t| DataType::try_from(t).ok()) {
        Some(DataType::Float) => f64::from(value as f32),
        Some(DataType::Float16) => half::f16::from_f64(value).into(),
        Some(DataType::Bfloat16) => half::bf16::from_f64(value).into(),
        _ => value,
    }
}

/// The result of an element-wise operator on two tensors of equal length, or of which one has a single element.
pub fn binary(op: &str, elem_type: Option<i32>, a: &Content, b: &Content) -> Option<Content> {
    let count = a.len().max(b.len());
    let both = |i: usize, n: usize| if n == 1 { 0 } else { i };
    if (a.len() != count && a.len() != 1) || (b.len() != count && b.len() != 1) {
        return None;
    }
    match (a, b) {
        (Content::Ints(a), Content::Ints(b)) => (0..count)
            .map(|i| int_op(op, a.get(both(i, a.len()))?, b.get(both(i, b.len()))?))
            .collect::<Option<_>>()
            .map(Content::Ints),
        (Content::Floats(a), Content::Floats(b)) => (0..count)
            .map(|i| {
                let (a, b) = (a.get(both(i, a.len()))?, b.get(both(i, b.len()))?);
                let value = match op {
                    "Add" => a + b,
                    "Sub" => a - b,
                    "Mul" => a * b,
                    "Div" => a / b,
                    "Pow" => a.powf(*b),
                    "Min" => a.min(*b),
                    "Max" => a.max(*b),
                    _ => return None,
                };
                Some(round_to(elem_type, value))
            })
            .collect::<Option<_>>()
            .map(Content::Floats),
        // Pow allows a float base with an integer exponent.
        (Content::Floats(a), Content::Ints(b)) if op == "Pow" => {
            let b = b
                .iter()
                .map(|d| d.as_i64().map(|n| n as f64))
                .collect::<Option<Vec<_>>>()?;
            binary(
                op,
                elem_type,
                &Content::Floats(a.clone()),
                &Content::Floats(b),
            )
        }
        _ => None,
    }
}

fn int_op(op: &str, a: &TDim, b: &TDim) -> Option<TDim> {
    let flag = |truth: bool| Some(TDim::Val(truth.into()));
    let known = a.as_i64().zip(b.as_i64());
    match op {
        "Add" => dim::add(a, b),
        "Sub" => dim::sub(a, b),
        "Mul" => dim::mul(a, b),
        "Div" => dim::div(a, b),
        "Min" => dim::min(a, b),
        "Max" if a == b => Some(a.clone()),
        "Max" => known.map(|(a, b)| TDim::Val(a.max(b))),
        "Equal" => match known {
            Some((a, b)) => flag(a == b),
            None if a == b => flag(true),
            // A size is never equal to the -1 in a target shape of `Reshape` or `Expand`.
            None if is_negative(a) && dim::never_negative(b) => flag(false),
            None if is_negative(b) && dim::never_negative(a) => flag(false),
            None => None,
        },
        "Less" => known.and_then(|(a, b)| flag(a < b)),
        "LessOrEqual" => known.and_then(|(a, b)| flag(a <= b)),
        "Greater" => known.and_then(|(a, b)| flag(a > b)),
        "GreaterOrEqual" => known.and_then(|(a, b)| flag(a >= b)),
        "And" => known.and_then(|(a, b)| flag(a != 0 && b != 0)),
        "Or" => known.and_then(|(a, b)| flag(a != 0 || b != 0)),
        "Mod" => known.and_then(|(a, b)| (b > 0).then(|| TDim::Val(a.rem_euclid(b)))),
        _ => None,
    }
}

fn is_negative(dim: &TDim) -> bool {
    dim.as_i64().is_some_and(|n| n < 0)
}

/// The result of an element-wise operator on one tensor.
pub fn unary(op: &str, elem_type: Option<i32>, a: &Content) -> Option<Content> {
    match a {
        Content::Floats(values) => values
            .iter()
            .map(|v| {
                let value = match op {
                    "Sqrt" => v.sqrt(),
                    "Reciprocal" => 1.0 / v,
                    "Neg" => -v,
                    "Exp" => v.exp(),
                    "Abs" => v.abs(),
                    _ => return None,
                };
                Some(round_to(elem_type, value))
            })
            .collect::<Option<_>>()
            .map(Content::Floats),
        Content::Ints(values) => values
            .iter()
            .map(|v| match op {
                "Neg" => dim::sub(&TDim::Val(0), v),
                "Not" => v.as_i64().map(|n| TDim::Val((n == 0).into())),
                "Abs" if dim::never_negative(v) => Some(v.clone()),
                _ => None,
            })
            .collect::<Option<_>>()
            .map(Content::Ints),
    }
}

/// `Cast` to the element type `to`.
pub fn cast(to: i32, a: &Content) -> Option<Content> {
    let to_kind = DataType::try_from(to).ok()?;
    let float = matches!(
        to_kind,
        DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16
    );
    match (a, float) {
        (Content::Floats(values), true) => Some(Content::Floats(
            values.iter().map(|&v| round_to(Some(to), v)).collect(),
        )),
        (Content::Ints(values), true) => values
            .iter()
            .map(|v| v.as_i64().map(|n| round_to(Some(to), n as f64)))
            .collect::<Option<_>>()
            .map(Content::Floats),
        (Content::Ints(values), false) if matches!(to_kind, DataType::Int64 | DataType::Int32) => {
            Some(Content::Ints(values.clone()))
        }
        (Content::Ints(values), false) if to_kind == DataType::Bool => values
            .iter()
            .map(|v| v.as_i64().map(|n| TDim::Val((n != 0).into())))
            .collect::<Option<_>>()
            .map(Content::Ints),
        (Content::Floats(values), false)
            if matches!(to_kind, DataType::Int64 | DataType::Int32) =>
        {
            values
                .iter()
                .map(|&v| (v.is_finite() && v.abs() < 1e9).then(|| TDim::Val(v.trunc() as i64)))
                .collect::<Option<_>>()
                .map(Content::Ints)
        }
        _ => None,
    }
}
