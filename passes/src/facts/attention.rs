//! The operators of ONNX Runtime's own domain, and those that are a whole attention.

use tract_data::prelude::TDim;

use crate::facts::ops::matmul;
use crate::facts::{Fact, Facts, dim};
use crate::graph::{input_at, int_attribute};
use crate::onnx::NodeProto;

/// The facts of the outputs of an operator of the `com.microsoft` domain.
pub fn contrib(
    facts: &mut Facts,
    node: &NodeProto,
    op: &str,
    inputs: &[Fact],
) -> Option<Vec<Fact>> {
    let first = inputs.first()?.clone();
    let like_first = |shape| Fact {
        elem_type: first.elem_type,
        shape,
        content: None,
    };
    match op {
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
            let turned = |fact: &Fact, name: &str| {
                let mut shape = fact.shape.clone()?;
                let rank = shape.len();
                if int_attribute(node, name, 0) != 0 && rank >= 2 {
                    shape.swap(rank - 1, rank - 2);
                }
                Some(shape)
            };
            let (a, b) = (turned(&first, "transA")?, turned(inputs.get(1)?, "transB")?);
            let shape = matmul(facts, &a, &b)?;
            Some(vec![like_first(Some(shape))])
        }
        "GroupQueryAttention" => grouped(facts, node, inputs),
        _ => None,
    }
}

/// `Attention` (opset 23): 4-D inputs, or 3-D with the heads packed in the last axis.
pub fn attention(node: &NodeProto, inputs: &[Fact]) -> Option<Vec<Fact>> {
    let (query, key, value) = (inputs.first()?, inputs.get(1)?, inputs.get(2)?);
    let (q, k, v) = (
        query.shape.as_ref()?,
        key.shape.as_ref()?,
        value.shape.as_ref()?,
    );
    let heads = |name: &str| TDim::Val(int_attribute(node, name, 0));
    let split = |shape: &[TDim], heads: TDim| match shape {
        [batch, length, packed] => Some(vec![
            batch.clone(),
            heads.clone(),
            length.clone(),
            dim::div(packed, &heads)?,
        ]),
        _ => Some(shape.to_vec()),
    };
    let (k4, v4) = (
        split(k, heads("kv_num_heads"))?,
        split(v, heads("kv_num_heads"))?,
    );
    let width = v4.last()?.clone();
    let mut output = q.clone();
    *output.last_mut()? = match q.len() {
        3 => dim::mul(&width, &heads("q_num_heads"))?,
        _ => width,
    };
    let past = |position: usize, present: &[TDim]| {
        let mut shape = present.to_vec();
        if let Some(past) = inputs.get(position).and_then(|f| f.shape.as_ref()) {
            let length = dim::add(past.get(2)?, shape.get(2)?)?;
            *shape.get_mut(2)? = length;
        }
        Some(shape)
    };
    let fact = |elem_type, shape| Fact {
        elem_type,
        shape,
        content: None,
    };
    Some(vec![
        fact(query.elem_type, Some(output)),
        fact(key.elem_type, past(4, &k4)),
        fact(value.elem_type, past(5, &v4)),
    ])
}

/// `com.microsoft.GroupQueryAttention`: packed or separate inputs; the presents have an open length.
fn grouped(facts: &mut Facts, node: &NodeProto, inputs: &[Fact]) -> Option<Vec<Fact>> {
    let query = inputs.first()?;
    let (heads, kv_heads) = (
        int_attribute(node, "num_heads", 0),
        int_attribute(node, "kv_num_heads", 0),
    );
    let mut output = query.shape.clone()?;
    let packed = input_at(node, 1).is_none();
    if packed {
        let width = output.last()?.as_i64()?;
        let head_size = width.checked_div(heads + 2 * kv_heads)?;
        *output.last_mut()? = TDim::Val(heads * head_size);
    }
    let mut present = |position: usize| {
        let mut shape = inputs.get(position)?.shape.clone()?;
        *shape.get_mut(2)? = facts.fresh();
        Some(shape)
    };
    let (key, value) = (present(3), present(4));
    let fact = |shape| Fact {
        elem_type: query.elem_type,
        shape,
        content: None,
    };
    Some(vec![fact(Some(output)), fact(key), fact(value)])
}
