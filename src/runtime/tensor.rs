//! Input and output tensors of sessions.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::runtime::error::RuntimeError;

/// The element types of the inputs and outputs of a language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper 16 bits of a single-precision number.
    BF16,
    /// Signed 64-bit integers.
    I64,
    /// Signed 32-bit integers.
    I32,
    /// Signed 8-bit integers, in quantized caches.
    I8,
    /// Unsigned 8-bit integers: each holds two 4-bit numbers of a quantized cache.
    U8,
    /// Booleans, one byte each.
    Bool,
}

impl ElementType {
    /// The type of an ONNX `TensorProto.DataType` number; `None` for types that inputs and outputs of language models
    /// do not have.
    #[must_use]
    pub fn from_onnx(number: i32) -> Option<Self> {
        match number {
            1 => Some(Self::F32),
            2 => Some(Self::U8),
            3 => Some(Self::I8),
            6 => Some(Self::I32),
            7 => Some(Self::I64),
            9 => Some(Self::Bool),
            10 => Some(Self::F16),
            16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// Size of an element in bytes.
    #[must_use]
    pub fn byte_size(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether it is a floating-point type.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Whether the type is that of a quantized cache.
    #[must_use]
    pub fn is_rounded(self) -> bool {
        matches!(self, Self::I8 | Self::U8)
    }

    /// Whether elements are integers with a meaning of their own, such as token ids and positions, not numbers of a
    /// quantized cache.
    #[must_use]
    pub fn is_integer(self) -> bool {
        matches!(self, Self::I64 | Self::I32)
    }
}

/// The elements of a tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Single precision.
    F32(Vec<f32>),
    /// Half precision.
    F16(Vec<f16>),
    /// bfloat16: the upper 16 bits of a single-precision number.
    BF16(Vec<bf16>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 8-bit integers.
    I8(Vec<i8>),
    /// Bytes.
    U8(Vec<u8>),
    /// Booleans.
    Bool(Vec<bool>),
}

impl Data {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::BF16(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U8(v) => v.len(),
            Self::Bool(v) => v.len(),
        }
    }

    /// Whether there are no elements, as in an empty cache.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements.
    #[must_use]
    pub fn element_type(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::F16(_) => ElementType::F16,
            Self::BF16(_) => ElementType::BF16,
            Self::I64(_) => ElementType::I64,
            Self::I32(_) => ElementType::I32,
            Self::I8(_) => ElementType::I8,
            Self::U8(_) => ElementType::U8,
            Self::Bool(_) => ElementType::Bool,
        }
    }
}

/// What new rows of a cache hold before the model writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// NaN or the largest integer, so that a read of them shows in the results.
    Unread,
    /// Ones, as the rows of an earlier text: they are read, and hidden by the model's masks.
    Stale,
}

/// A dense tensor. Any dimension may be 0; a scalar has an empty shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Size of each axis.
    pub shape: Vec<usize>,
    /// Elements, row-major; as many as the product of `shape`.
    pub data: Data,
}

impl Tensor {
    /// A tensor of any element type.
    ///
    /// # Errors
    /// [`RuntimeError::ElementCount`] if the number of elements does not fit the shape.
    pub fn new(shape: Vec<usize>, data: Data) -> Result<Self, RuntimeError> {
        let holds = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        if holds == Some(data.len()) {
            Ok(Self { shape, data })
        } else {
            Err(RuntimeError::ElementCount {
                shape,
                elements: data.len(),
            })
        }
    }

    /// A tensor of integers or booleans (not zero is true), or the same numbers as floats.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_integers(
        element: ElementType,
        shape: Vec<usize>,
        values: &[i64],
    ) -> Result<Self, RuntimeError> {
        // Token ids, positions and masks are far below 2^31 and 2^24, so conversions are exact.
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
        let data = match element {
            ElementType::I64 => Data::I64(values.to_vec()),
            ElementType::I32 => Data::I32(values.iter().map(|&v| v as i32).collect()),
            ElementType::I8 => Data::I8(values.iter().map(|&v| v as i8).collect()),
            ElementType::U8 => Data::U8(values.iter().map(|&v| v as u8).collect()),
            ElementType::Bool => Data::Bool(values.iter().map(|&v| v != 0).collect()),
            ElementType::F32 | ElementType::F16 | ElementType::BF16 => {
                return Self::from_floats(
                    element,
                    shape,
                    values.iter().map(|&v| v as f32).collect(),
                );
            }
        };
        Self::new(shape, data)
    }

    /// A tensor of `values` converted to the type `element`; integers are rounded towards zero; as booleans, all but
    /// zero are true.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_floats(
        element: ElementType,
        shape: Vec<usize>,
        values: Vec<f32>,
    ) -> Result<Self, RuntimeError> {
        #[allow(clippy::cast_possible_truncation)]
        let data = match element {
            ElementType::F32 => Data::F32(values),
            ElementType::F16 => Data::F16(values.into_iter().map(f16::from_f32).collect()),
            ElementType::BF16 => Data::BF16(values.into_iter().map(bf16::from_f32).collect()),
            ElementType::I64 => Data::I64(values.into_iter().map(|v| v as i64).collect()),
            ElementType::I32 => Data::I32(values.into_iter().map(|v| v as i32).collect()),
            ElementType::I8 => Data::I8(values.into_iter().map(|v| v as i8).collect()),
            ElementType::U8 => Data::U8(values.into_iter().map(|v| v as u8).collect()),
            ElementType::Bool => Data::Bool(values.into_iter().map(|v| v != 0.0).collect()),
        };
        Self::new(shape, data)
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`RuntimeError::ElementCount`] if the number of elements overflows.
    pub fn zeros(element: ElementType, shape: Vec<usize>) -> Result<Self, RuntimeError> {
        let Some(holds) = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d)) else {
            return Err(RuntimeError::ElementCount { shape, elements: 0 });
        };
        Self::from_floats(element, shape, vec![0.0; holds])
    }

    /// The same tensor with `count` more rows at the end of `axis`, filled as `room` says.
    ///
    /// # Errors
    /// [`RuntimeError::ElementCount`] if the number of elements overflows.
    pub fn with_room(self, axis: usize, count: usize, room: Room) -> Result<Self, RuntimeError> {
        let mut shape = self.shape;
        let (outer, inner) = (
            shape.iter().take(axis).product(),
            shape.iter().skip(axis + 1).product::<usize>(),
        );
        let kept = shape.get(axis).copied().unwrap_or(0).saturating_mul(inner);
        if let Some(size) = shape.get_mut(axis) {
            *size = size.saturating_add(count);
        }
        let added = count.saturating_mul(inner);
        let whole = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        if whole.is_none() {
            let elements = self.data.len();
            return Err(RuntimeError::ElementCount { shape, elements });
        }
        macro_rules! grown {
            ($kind:ident, $values:expr, $unread:expr, $one:expr) => {{
                let filling = match room {
                    Room::Unread => $unread,
                    Room::Stale => $one,
                };
                Data::$kind(with_gaps(&$values, outer, kept, (added, filling)))
            }};
        }
        let data = match self.data {
            Data::F32(v) => grown!(F32, v, f32::NAN, 1.0),
            Data::F16(v) => grown!(F16, v, f16::NAN, f16::ONE),
            Data::BF16(v) => grown!(BF16, v, bf16::NAN, bf16::ONE),
            Data::I64(v) => grown!(I64, v, i64::MAX, 1),
            Data::I32(v) => grown!(I32, v, i32::MAX, 1),
            Data::I8(v) => grown!(I8, v, i8::MAX, 1),
            Data::U8(v) => grown!(U8, v, u8::MAX, 1),
            Data::Bool(v) => grown!(Bool, v, true, true),
        };
        Self::new(shape, data)
    }

    /// The type of the elements.
    #[must_use]
    pub fn element_type(&self) -> ElementType {
        self.data.element_type()
    }

    /// Size of the elements in bytes.
    #[must_use]
    pub fn byte_size(&self) -> usize {
        self.data.len() * self.element_type().byte_size()
    }

    /// The elements in single precision, without a copy if they are already.
    #[must_use]
    pub fn floats(&self) -> Cow<'_, [f32]> {
        match &self.data {
            Data::F32(v) => Cow::Borrowed(v),
            _ => Cow::Owned(self.to_f32()),
        }
    }

    /// The same tensor in single precision.
    #[must_use]
    pub fn into_f32(self) -> Self {
        match self.data {
            Data::F32(_) => self,
            _ => Self {
                data: Data::F32(self.to_f32()),
                shape: self.shape,
            },
        }
    }

    /// The elements in single precision; true is 1.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(v) => v.clone(),
            Data::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Data::BF16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Data::I64(v) => v.iter().map(|&x| x as f32).collect(),
            Data::I32(v) => v.iter().map(|&x| x as f32).collect(),
            Data::I8(v) => v.iter().map(|&x| f32::from(x)).collect(),
            Data::U8(v) => v.iter().map(|&x| f32::from(x)).collect(),
            Data::Bool(v) => v.iter().map(|&x| f32::from(u8::from(x))).collect(),
        }
    }
}

/// `values` in `count` blocks of `kept` elements, with `added` elements of the value `filling` appended to each block.
fn with_gaps<T: Copy>(
    values: &[T],
    count: usize,
    kept: usize,
    (added, filling): (usize, T),
) -> Vec<T> {
    let mut all = Vec::with_capacity(values.len() + count * added);
    for piece in 0..count {
        let own = values.get(piece * kept..(piece + 1) * kept);
        all.extend_from_slice(own.unwrap_or_default());
        all.resize(all.len() + added, filling);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{Data, Room, Tensor};

    #[test]
    fn room_is_made_behind_the_rows_of_every_sequence() {
        let cache = Tensor::new(vec![2, 1, 1, 2], Data::I8(vec![1, 2, 3, 4])).unwrap();
        let grown = cache.with_room(2, 1, Room::Unread).unwrap();
        assert_eq!(grown.shape, [2, 1, 2, 2]);
        let last = i8::MAX;
        assert_eq!(
            grown.data,
            Data::I8(vec![1, 2, last, last, 3, 4, last, last])
        );
        let empty = Tensor::new(vec![2, 1, 0, 2], Data::F32(Vec::new())).unwrap();
        let grown = empty.with_room(2, 3, Room::Unread).unwrap();
        assert!(grown.floats().len() == 12 && grown.floats().iter().all(|x| x.is_nan()));
    }
}
