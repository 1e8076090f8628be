//! `com.microsoft.MultiHeadAttention` (ONNX Runtime contrib operator specification), which graph optimizers generate.

use tract_data::prelude::TDim;

use crate::facts::{Fact, Facts, dim};
use crate::graph::{float_attribute, input_at, int_attribute, output_at};
use crate::onnx::NodeProto;
use crate::operators::primitives::{Core, Primitives};
use crate::operators::{LoweredNode, Operator, Target, unsupported};
use crate::recognize::reject::Reason;

/// The operator.
pub const OPERATOR: Operator = Operator::new("com.microsoft", "MultiHeadAttention", outputs, lower);

fn lower(s: &mut Primitives, node: &NodeProto, _: Target) -> Result<LoweredNode, Reason> {
    let refuse = |detail: &str| Err(unsupported(node, detail));
    let input = |position| input_at(node, position);
    let output = |position| output_at(node, position);
    let (Some(query), Some(key), Some(value), Some(y)) = (input(0), input(1), input(2), output(0))
    else {
        return refuse(
            "its queries, keys and values are packed in one input: optimize without packing (options --disable_packed_qkv and --disable_packed_kv of ONNX Runtime's transformer optimizer)",
        );
    };
    if input(3).is_some() || input(4).is_some() {
        return refuse(
            "it adds a bias or a padding mask by itself: optimize without fusing them in",
        );
    }
    if input(8).is_some() || input(9).is_some() || output(3).is_some() {
        return refuse(
            "its cache is a shared buffer, or its scores are an output: export with a cache that grows, and without output_attentions",
        );
    }
    let heads = int_attribute(node, "num_heads", 0);
    let Some(elem_type) = s.facts.elem_type(query) else {
        return refuse(
            "the element type of its query is not known: declare the types of the model's inputs",
        );
    };
    // Queries are [B, T, H*d]; keys and values are packed likewise or [B, H, S, d].
    let size = |value: &str| {
        let shape = s.facts.shape(value)?;
        let last = shape.last()?.as_i64()?;
        match shape.len() {
            3 => (heads > 0 && last % heads == 0).then(|| last / heads),
            4 => Some(last),
            _ => None,
        }
    };
    let (Some(3), Some(head_size), Some(value_size)) =
        (s.facts.shape(query).map(<[_]>::len), size(key), size(value))
    else {
        return refuse(
            "the sizes of its heads are not constant: export with a fixed hidden size and num_heads",
        );
    };
    let packed = |value: &str| s.facts.shape(value).is_some_and(|shape| shape.len() == 3);
    let (key_packed, value_packed) = (packed(key), packed(value));
    let q = s.heads("q", query, heads, head_size);
    let k = if key_packed {
        s.heads("k", key, heads, head_size)
    } else {
        key.to_owned()
    };
    let v = if value_packed {
        s.heads("v", value, heads, value_size)
    } else {
        value.to_owned()
    };
    let (key, value) = match (input(6), input(7), output(1), output(2)) {
        (Some(past_key), Some(past_value), Some(present_key), Some(present_value)) => {
            s.named("Concat", "append_k", &[past_key, &k], &[present_key], |n| {
                n.with_int("axis", 2)
            });
            s.named(
                "Concat",
                "append_v",
                &[past_value, &v],
                &[present_value],
                |n| n.with_int("axis", 2),
            );
            (present_key.to_owned(), present_value.to_owned())
        }
        (None, None, None, None) => (k, v),
        _ => {
            return refuse(
                "it has a past without a present, or a present without a past: export with both or neither",
            );
        }
    };
    let mut biases: Vec<String> = input(5).map(str::to_owned).into_iter().collect();
    if int_attribute(node, "unidirectional", 0) != 0 {
        let (rows, columns) = (s.size("T", &q, 2), s.size("S", &key, 2));
        let start = s.op("Sub", "P", &[&columns, &rows]);
        biases.push(s.causal_bias(&start, &rows, &columns, None, elem_type));
    }
    let scale = match float_attribute(node, "scale", 0.0) {
        0.0 => 1.0 / (head_size as f64).sqrt(),
        scale => f64::from(scale),
    };
    let score = s.core(&Core {
        query: &q,
        key: &key,
        value: &value,
        heads,
        kv_heads: heads,
        head_size,
        value_size,
        scale,
        softcap: 0.0,
        biases,
        sink: None,
        guard: false,
        elem_type,
        output: y,
        packed: true,
    });
    Ok(LoweredNode::new(score))
}

/// Output facts. Queries are packed as [B, T, H*d], keys and values likewise or [B, H, S, d]; a present is the past
/// with the new rows appended.
fn outputs(_: &Facts, node: &NodeProto, inputs: &[&Fact]) -> Option<Vec<Fact>> {
    let (query, key, value) = (inputs.first()?, inputs.get(1)?, inputs.get(2)?);
    let heads = TDim::Val(int_attribute(node, "num_heads", 0));
    let unpacked = |fact: &Fact| match fact.shape.as_deref()? {
        [batch, length, width] => Some(vec![
            batch.clone(),
            heads.clone(),
            length.clone(),
            dim::div(width, &heads)?,
        ]),
        shape => Some(shape.to_vec()),
    };
    let (k4, v4) = (unpacked(key)?, unpacked(value)?);
    let mut output = query.shape.clone().filter(|shape| shape.len() == 3)?;
    *output.last_mut()? = dim::mul(v4.last()?, &heads)?;
    let present = |past: usize, new: &[TDim]| {
        let mut shape = new.to_vec();
        if let Some(past) = inputs.get(past).and_then(|f| f.shape.as_ref()) {
            let length = dim::add(past.get(2)?, new.get(2)?)?;
            *shape.get_mut(2)? = length;
        }
        Some(shape)
    };
    Some(vec![
        Fact::new(query.elem_type, Some(output)),
        Fact::new(key.elem_type, present(6, &k4)),
        Fact::new(value.elem_type, present(7, &v4)),
    ])
}
