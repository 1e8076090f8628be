//! Inference of operators of ONNX Runtime's domain `com.microsoft`.

use tract_data::prelude::TDim;

use crate::facts::contract::matmul;
use crate::facts::windows::convolved;
use crate::facts::{Fact, Facts, Shape, shapes};
use crate::graph::int_attribute;
use crate::onnx::NodeProto;

/// The permutation that `FusedMatMul` applies to the axes of its operand `side` (A or B) of rank `rank`: `transBatch`
/// moves the first axis behind the other batch axes, and `trans` then swaps the last two axes.
pub fn operand_order(node: &NodeProto, side: char, rank: usize) -> Vec<i64> {
    let set = |name: &str| int_attribute(node, &format!("{name}{side}"), 0) != 0;
    let mut order: Vec<i64> = (0..rank as i64).collect();
    if let [batch @ .., _] = order.as_mut_slice()
        && batch.len() > 1
        && set("transBatch")
    {
        batch.rotate_left(1);
    }
    if let [.., row, column] = order.as_mut_slice()
        && set("trans")
    {
        std::mem::swap(row, column);
    }
    order
}

/// The facts of the outputs of `node`, an operator of `com.microsoft`; `None` if only the type of its output is known,
/// that of its first input.
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
            let ordered = |fact: &Fact, side| {
                let shape = fact.shape.as_deref()?;
                shapes::transpose(shape, &operand_order(node, side, shape.len()))
            };
            let (a, b) = (ordered(first, 'A')?, ordered(inputs.get(1)?, 'B')?);
            Some(vec![like_first(Some(matmul(facts, &a, &b)?))])
        }
        "DequantizeLinear" => Some(vec![Fact::new(
            inputs.get(1)?.elem_type,
            first.shape.clone(),
        )]),
        // The output has the type of the scales.
        "MatMulIntegerToFloat" | "GatherBlockQuantized" => {
            let shape = match node.op_type() {
                "MatMulIntegerToFloat" => product(facts, first, inputs.get(1)?),
                _ => None,
            };
            Some(vec![Fact::new(inputs.get(2)?.elem_type, shape)])
        }
        "DynamicQuantizeMatMul" => Some(vec![like_first(product(facts, first, inputs.get(1)?))]),
        "FusedConv" => Some(vec![like_first(convolved(
            facts,
            node,
            first,
            inputs.get(1)?,
        ))]),
        "BiasAdd" | "BiasSoftmax" | "FusedGemm" | "MoE" | "QMoE" => Some(vec![like_first(None)]),
        _ => Some(Vec::new()),
    }
}

/// The shape of the matrix product of `a` and `b`.
fn product(facts: &Facts, a: &Fact, b: &Fact) -> Option<Shape> {
    matmul(facts, a.shape.as_deref()?, b.shape.as_deref()?)
}
