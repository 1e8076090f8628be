//! The inferred properties of one value.

use tract_data::prelude::TDim;

use crate::facts::content::Content;

/// A symbolic shape.
pub type Shape = Vec<TDim>;

/// The inferred properties of one value: element type, shape and, for small tensors, elements.
#[derive(Debug, Clone, Default)]
pub struct Fact {
    /// ONNX element type (`TensorProto.DataType`).
    pub elem_type: Option<i32>,
    /// Shape; `None` when even the rank is unknown.
    pub shape: Option<Shape>,
    /// Elements, row-major, for small tensors that are known.
    pub content: Option<Content>,
}

impl Fact {
    /// A fact with the given type and shape and unknown elements.
    pub fn new(elem_type: Option<i32>, shape: Option<Shape>) -> Self {
        Self {
            elem_type,
            shape,
            content: None,
        }
    }

    /// The same fact with the elements `content`.
    pub fn holding(self, content: Option<Content>) -> Self {
        Self { content, ..self }
    }
}

/// The fact of a value with unknown type, shape and elements.
pub static UNKNOWN: Fact = Fact {
    elem_type: None,
    shape: None,
    content: None,
};
