//! Stored matrices, as they are or behind the nodes that models with quantized weights make numbers of them with.

use crate::graph::{Graph, attribute, input_at, int_attribute};
use crate::onnx::TensorProto;

/// A stored matrix that a product multiplies with.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'g> {
    /// The initializer.
    pub tensor: &'g TensorProto,
    /// How its integers stand for numbers; `None` where it holds numbers.
    pub scales: Option<Scales<'g>>,
    /// Whether a `Transpose` exchanges its two axes.
    pub is_transposed: bool,
}

/// The inputs and attributes of a `DequantizeLinear` (operator specification, opset 21).
#[derive(Debug, Clone, Copy)]
pub struct Scales<'g> {
    /// What one step is worth: one number, one for each place on `axis`, or one for each block of places.
    pub scale: &'g TensorProto,
    /// The integer that stands for zero, in the shape of `scale`; `None`: zero.
    pub zero: Option<&'g TensorProto>,
    /// The axis, possibly negative.
    pub axis: i64,
    /// Places of a block; 0 without blocks.
    pub block: i64,
}

impl<'g> Weight<'g> {
    /// The matrix that `value` holds, if nothing but the weights of the model makes it.
    pub fn of(graph: &Graph<'g>, value: &'g str) -> Option<Self> {
        let value = graph.resolve(value);
        if let Some(tensor) = graph.initializer(value) {
            return Some(Self {
                tensor,
                scales: None,
                is_transposed: false,
            });
        }
        let (_, node) = graph.producer(value)?;
        let stored = |at| graph.initializer(graph.resolve(input_at(node, at)?));
        match (node.op_type(), node.domain()) {
            ("DequantizeLinear", "" | "ai.onnx" | "com.microsoft") => Some(Self {
                tensor: stored(0)?,
                scales: Some(Scales {
                    scale: stored(1)?,
                    zero: match input_at(node, 2) {
                        Some(_) => Some(stored(2)?),
                        None => None,
                    },
                    axis: int_attribute(node, "axis", 1),
                    block: int_attribute(node, "block_size", 0),
                }),
                is_transposed: false,
            }),
            ("Transpose", "" | "ai.onnx") => {
                let inner = Self::of(graph, input_at(node, 0)?)?;
                let axes = attribute(node, "perm").map(|a| a.ints.as_slice());
                let exchanges = inner.tensor.dims.len() == 2 && matches!(axes, None | Some([1, 0]));
                exchanges.then_some(Self {
                    is_transposed: !inner.is_transposed,
                    ..inner
                })
            }
            _ => None,
        }
    }
}
