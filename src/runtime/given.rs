//! Model inputs with values from the user, the same in every run.

use crate::runtime::error::RuntimeError;
use crate::runtime::tensor::{ElementType, Tensor};

/// The value of one model input in every run.
#[derive(Debug, Clone, PartialEq)]
pub struct GivenInput {
    /// The input's name.
    pub name: String,
    /// The value.
    pub value: GivenValue,
}

/// The value of an input, converted to the declared element type of the input.
#[derive(Debug, Clone, PartialEq)]
pub enum GivenValue {
    /// One number for all elements, in the declared shape.
    Everywhere(f64),
    /// A tensor. If it has one row, the row is repeated for each row of the batch.
    Tensor {
        /// Extent of each axis.
        shape: Vec<usize>,
        /// Elements, row-major.
        values: Vec<f64>,
    },
}

impl GivenValue {
    /// The value as a tensor of element type `element` for a batch of `rows` rows. `shape` is the declared shape.
    ///
    /// # Errors
    /// [`RuntimeError::ElementCount`] if the number of elements does not fit the shape.
    pub fn tensor(
        &self,
        element: ElementType,
        shape: Vec<usize>,
        rows: usize,
    ) -> Result<Tensor, RuntimeError> {
        match self {
            Self::Everywhere(number) => {
                let count = shape.iter().product();
                typed(element, shape, vec![*number; count])
            }
            Self::Tensor { shape, values } => match shape.as_slice() {
                [1, rest @ ..] if rows > 1 => {
                    typed(element, [&[rows], rest].concat(), values.repeat(rows))
                }
                _ => typed(element, shape.clone(), values.clone()),
            },
        }
    }
}

fn typed(
    element: ElementType,
    shape: Vec<usize>,
    values: Vec<f64>,
) -> Result<Tensor, RuntimeError> {
    // Not every token id can be represented in single precision.
    #[allow(clippy::cast_possible_truncation)]
    match element.is_float() {
        true => Tensor::from_floats(element, shape, values.iter().map(|&v| v as f32).collect()),
        false => {
            let values: Vec<i64> = values.iter().map(|&v| v as i64).collect();
            Tensor::from_integers(element, shape, &values)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::GivenValue;
    use crate::runtime::tensor::{Data, ElementType};

    #[test]
    fn a_number_fills_the_shape_and_one_row_is_repeated() {
        let half = GivenValue::Everywhere(0.5).tensor(ElementType::F32, vec![2, 1], 2);
        assert_eq!(half.unwrap().data, Data::F32(vec![0.5, 0.5]));
        let row = GivenValue::Tensor {
            shape: vec![1, 2],
            values: vec![3.0, 4.0],
        };
        let rows = row.tensor(ElementType::I64, vec![9, 9], 2).unwrap();
        assert_eq!(rows.shape, [2, 2]);
        assert_eq!(rows.data, Data::I64(vec![3, 4, 3, 4]));
    }
}
