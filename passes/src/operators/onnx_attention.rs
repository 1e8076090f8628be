//! `Attention` of the default domain, opset 23 and 24 (ONNX operator specification).

use tract_data::prelude::TDim;

use crate::facts::{Fact, Facts, dim};
use crate::graph::{float_attribute, input_at, int_attribute, output_at};
use crate::onnx::{NodeProto, tensor_proto::DataType};
use crate::operators::primitives::{Core, Primitives};
use crate::operators::{LoweredNode, Operator, Target, unsupported};
use crate::recognize::reject::Reason;

/// The operator.
pub const OPERATOR: Operator = Operator::new("", "Attention", outputs, lower);

fn lower(s: &mut Primitives, node: &NodeProto, _: Target) -> Result<LoweredNode, Reason> {
    let refuse = |detail: &str| Err(unsupported(node, detail));
    let input = |position| input_at(node, position);
    let output = |position| output_at(node, position);
    let (Some(q), Some(k), Some(v), Some(y)) = (input(0), input(1), input(2), output(0)) else {
        return refuse(
            "query, key, value or output is missing, which the operator requires: export the model again",
        );
    };
    if output(3).is_some() {
        return refuse(
            "its scores (qk_matmul_output) are an output, which a latent product does not give: export without output_attentions",
        );
    }
    if input(6).is_some() && input(4).is_some() {
        return refuse(
            "it has both a past and nonpad_kv_seqlen, of which the operator takes one: export with a cache that it appends to, or with one that TensorScatter writes",
        );
    }
    if int_attribute(node, "softmax_precision", 0) != 0
        && s.facts.elem_type(q) != Some(int_attribute(node, "softmax_precision", 0) as i32)
    {
        return refuse(
            "its softmax runs in another type than its inputs (softmax_precision): export without softmax_precision",
        );
    }
    if int_attribute(node, "left_window_size", -1) >= 0
        || int_attribute(node, "right_window_size", -1) >= 0
    {
        return refuse(
            "it has window attributes of a newer opset than 24: export with opset 24 or older, which masks the window",
        );
    }
    let Some(elem_type) = s.facts.elem_type(q) else {
        return refuse(
            "the element type of its query is not known: declare the types of the model's inputs",
        );
    };
    let rank = s.facts.shape(q).map(<[_]>::len);
    let (q, k_new, v_new, heads, kv_heads) = match rank {
        Some(4) => {
            let count = |value: &str| s.facts.shape(value)?.get(1)?.as_i64();
            let (Some(heads), Some(kv_heads)) = (count(q), count(k)) else {
                return refuse(
                    "the number of its heads is not constant: export with fixed numbers of query and KV heads",
                );
            };
            (q.to_owned(), k.to_owned(), v.to_owned(), heads, kv_heads)
        }
        Some(3) => {
            let (heads, kv_heads) = (
                int_attribute(node, "q_num_heads", 0),
                int_attribute(node, "kv_num_heads", 0),
            );
            let size = |value: &str, heads: i64| {
                let width = s.facts.shape(value)?.get(2)?.as_i64()?;
                (heads > 0 && width % heads == 0).then(|| width / heads)
            };
            let (Some(dq), Some(dk), Some(dv)) =
                (size(q, heads), size(k, kv_heads), size(v, kv_heads))
            else {
                return refuse(
                    "its packed width is not a whole number of heads: set q_num_heads and kv_num_heads to the model's",
                );
            };
            (
                s.heads("q", q, heads, dq),
                s.heads("k", k, kv_heads, dk),
                s.heads("v", v, kv_heads, dv),
                heads,
                kv_heads,
            )
        }
        _ => {
            return refuse(
                "its query has neither three nor four axes, the two shapes that the operator defines: export the model again",
            );
        }
    };
    if kv_heads < 1 || heads % kv_heads != 0 {
        return refuse(
            "its query heads are no multiple of its KV heads, which the operator requires: set q_num_heads and kv_num_heads to the model's",
        );
    }
    let width = |value: &str| {
        let shape = s.facts.shape(value)?;
        let last = shape.last()?.as_i64()?;
        Some(if shape.len() == 3 {
            last / kv_heads
        } else {
            last
        })
    };
    let (Some(head_size), Some(value_size)) = (width(k), width(v)) else {
        return refuse("its head size is not constant: export with a fixed hidden size");
    };

    let (key, value) = match (input(4), input(5)) {
        (Some(past_key), Some(past_value)) => {
            let (Some(present_key), Some(present_value)) = (output(1), output(2)) else {
                return refuse("it takes a past and gives no present");
            };
            s.named(
                "Concat",
                "append_k",
                &[past_key, &k_new],
                &[present_key],
                |n| n.with_int("axis", 2),
            );
            s.named(
                "Concat",
                "append_v",
                &[past_value, &v_new],
                &[present_value],
                |n| n.with_int("axis", 2),
            );
            (present_key.to_owned(), present_value.to_owned())
        }
        (None, None) => {
            let read = |value: &&str| s.graph.is_output(value) || !s.graph.uses(value).is_empty();
            let presents = [output(1).filter(read), output(2).filter(read)];
            for (present, (part, new)) in presents.into_iter().zip([("k", &k_new), ("v", &v_new)]) {
                if let Some(present) = present {
                    let part = format!("present_{part}");
                    s.named("Identity", &part, &[new], &[present], |n| n);
                }
            }
            (k_new, v_new)
        }
        _ => return refuse("it takes a past for only one of key and value"),
    };

    let mut biases = Vec::new();
    let mut guard = false;
    if let Some(mask) = input(3) {
        guard = true;
        biases.push(match s.facts.elem_type(mask) {
            Some(t) if t == DataType::Bool as i32 => s.bias_of(mask, "mask_bias", elem_type),
            Some(t) if t == elem_type => mask.to_owned(),
            _ => return refuse("the type of its mask is not known"),
        });
    }
    let causal = int_attribute(node, "is_causal", 0) != 0;
    if let Some(lengths) = input(6) {
        let (new, rows) = (input(0).unwrap_or_default(), input(1).unwrap_or_default());
        let size = |value: &str, axis: usize| s.facts.shape(value)?.iter().nth_back(axis);
        if input(3).is_some_and(|mask| size(mask, 0) != size(rows, 1)) {
            return refuse(
                "its mask may be shorter than its cache: export with a mask that has a column for each row of the cache",
            );
        }
        // A sequence that has written nothing attends to nothing.
        guard = true;
        biases.push(s.written_bias(lengths, (new, rows), causal, elem_type));
    } else if causal {
        let rows = s.size("T", &q, 2);
        let columns = s.size("S", &key, 2);
        let start = match input(4) {
            Some(past) => s.size("P", past, 2),
            None => s.vector(&[0]),
        };
        biases.push(s.causal_bias(&start, &rows, &columns, None, elem_type));
    }
    let default = 1.0 / (head_size as f64).sqrt();
    let scale = match crate::graph::attribute(node, "scale") {
        Some(scale) => f64::from(scale.f()),
        None => default,
    };
    let score = s.core(&Core {
        query: &q,
        key: &key,
        value: &value,
        heads,
        kv_heads,
        head_size,
        value_size,
        scale,
        softcap: float_attribute(node, "softcap", 0.0),
        biases,
        sink: None,
        guard,
        elem_type,
        output: y,
        packed: rank == Some(3),
    });
    Ok(LoweredNode::new(score))
}

/// Output facts. Inputs have four axes, or three with packed heads; a present is the past with the new rows appended.
fn outputs(_: &Facts, node: &NodeProto, inputs: &[&Fact]) -> Option<Vec<Fact>> {
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
    Some(vec![
        Fact::new(query.elem_type, Some(output)),
        Fact::new(key.elem_type, past(4, &k4)),
        Fact::new(value.elem_type, past(5, &v4)),
    ])
}
