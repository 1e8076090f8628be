//! Rows of tensors along an axis.

use std::ops::Range;

use crate::runtime::error::RuntimeError;
use crate::runtime::tensor::{Data, Tensor};

impl Tensor {
    /// The rows `range` of `axis`.
    ///
    /// # Errors
    /// [`RuntimeError::ElementCount`] if there are fewer.
    pub fn rows(self, axis: usize, range: Range<usize>) -> Result<Self, RuntimeError> {
        let mut shape = self.shape;
        let inner: usize = shape.iter().skip(axis + 1).product();
        let size = shape.get(axis).copied().unwrap_or(0);
        if range == (0..size) {
            return Self::new(shape, self.data);
        }
        if let Some(size) = shape.get_mut(axis) {
            *size = range.len();
        }
        let (block, part) = (size * inner, range.start * inner..range.end * inner);
        macro_rules! part {
            ($kind:ident, $values:expr) => {{
                let blocks = $values.chunks_exact(block.max(1));
                let parts = blocks.filter_map(|block| block.get(part.clone()));
                Data::$kind(parts.flatten().copied().collect())
            }};
        }
        let data = match self.data {
            Data::F32(v) => part!(F32, v),
            Data::F16(v) => part!(F16, v),
            Data::BF16(v) => part!(BF16, v),
            Data::I64(v) => part!(I64, v),
            Data::I32(v) => part!(I32, v),
            Data::I8(v) => part!(I8, v),
            Data::U8(v) => part!(U8, v),
            Data::Bool(v) => part!(Bool, v),
        };
        Self::new(shape, data)
    }

    /// This tensor with the rows of `other` behind its own on `axis`. The other axes have the same sizes.
    ///
    /// # Errors
    /// [`RuntimeError::ElementCount`] if the types or the other axes differ.
    pub fn followed_by(self, other: &Self, axis: usize) -> Result<Self, RuntimeError> {
        let size = |shape: &[usize]| shape.iter().skip(axis).product::<usize>();
        let (own, added) = (size(&self.shape), size(&other.shape));
        let outer = self.shape.iter().take(axis).product::<usize>();
        let mut shape = self.shape;
        if let (Some(size), Some(more)) = (shape.get_mut(axis), other.shape.get(axis)) {
            *size += more;
        }
        macro_rules! joined {
            ($kind:ident, $a:expr, $b:expr) => {{
                let mut all = Vec::with_capacity($a.len() + $b.len());
                for at in 0..outer {
                    all.extend_from_slice($a.get(at * own..(at + 1) * own).unwrap_or_default());
                    all.extend_from_slice($b.get(at * added..(at + 1) * added).unwrap_or_default());
                }
                Data::$kind(all)
            }};
        }
        let data = match (self.data, &other.data) {
            (Data::F32(a), Data::F32(b)) => joined!(F32, a, b),
            (Data::F16(a), Data::F16(b)) => joined!(F16, a, b),
            (Data::BF16(a), Data::BF16(b)) => joined!(BF16, a, b),
            (Data::I64(a), Data::I64(b)) => joined!(I64, a, b),
            (Data::I32(a), Data::I32(b)) => joined!(I32, a, b),
            (Data::I8(a), Data::I8(b)) => joined!(I8, a, b),
            (Data::U8(a), Data::U8(b)) => joined!(U8, a, b),
            (Data::Bool(a), Data::Bool(b)) => joined!(Bool, a, b),
            (own, _) => own,
        };
        Self::new(shape, data)
    }
}
