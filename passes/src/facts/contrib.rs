//! Operators of ONNX Runtime's own domain, `com.microsoft`.

use tract_data::prelude::TDim;

use crate::facts::contract::matmul;
use crate::facts::{Fact, Facts};
use crate::graph::int_attribute;
use crate::onnx::NodeProto;

/// The facts of the outputs of `node`, an operator of that domain; `None` as in [`crate::facts::node`].
pub fn contrib(facts: &Facts, node: &NodeProto, inputs: &[&Fact]) -> Option<Vec<Fact>> {
    let first = inputs.first()?;
    let like_first = |shape| Fact::new(first.elem_type, shape);
    match node.op_type() {
        "RotaryEmbedding" | "QuickGelu" | "FastGelu" | "BiasGelu" | "Gelu" => {
            Some(vec![like_first(first.shape.clone())])
        }
        "SkipSimplifiedLayerNormalization" | "SkipLayerNormalization" => {
            let same = like_first(first.shape.clone());
            Some(vec![same.clone(), Fact::default(), Fact::default(), same])
        }
        "MatMulNBits" => {
            let mut shape = first.shape.clone()?;
            *shape.last_mut()? = TDim::Val(int_attribute(node, "N", 0));
            Some(vec![like_first(Some(shape))])
        }
        "FusedMatMul" => {
            let transposed = |fact: &Fact, name: &str| {
                let mut shape = fact.shape.clone()?;
                let rank = shape.len();
                if int_attribute(node, name, 0) != 0 && rank >= 2 {
                    shape.swap(rank - 1, rank - 2);
                }
                Some(shape)
            };
            let a = transposed(first, "transA")?;
            let b = transposed(inputs.get(1)?, "transB")?;
            Some(vec![like_first(Some(matmul(facts, &a, &b)?))])
        }
        "DequantizeLinear" => Some(vec![Fact::new(
            inputs.get(1)?.elem_type,
            first.shape.clone(),
        )]),
        // The product of quantized matrices comes out in the type of their scales.
        "MatMulIntegerToFloat" | "GatherBlockQuantized" => {
            Some(vec![Fact::new(inputs.get(2)?.elem_type, None)])
        }
        "DynamicQuantizeMatMul" => {
            let shapes = first.shape.as_ref().zip(inputs.get(1)?.shape.as_ref());
            let shape = shapes.and_then(|(a, b)| matmul(facts, a, b));
            Some(vec![like_first(shape)])
        }
        "BiasAdd" | "BiasSoftmax" | "FusedGemm" | "MoE" | "QMoE" | "FusedConv" => {
            Some(vec![like_first(None)])
        }
        _ => Some(Vec::new()),
    }
}
