//! `com.microsoft.GroupQueryAttention` (ONNX Runtime contrib operator specification).
//!
//! The expansion appends the new tokens at the end of the past in every row of the batch. The operator can do more: in
//! a right-padded batch each row appends at its own length, and a cache buffer can be longer than its contents. In
//! these cases a check in the expanded graph makes the run fail, so that no wrong result is returned silently. The
//! target `gqa` keeps the operator and supports them.
//!
//! Keys and values of length 0 are those of a layer that reads the cache of another (Gemma 4): the past is the present of
//! that layer, and holds the new rows already.

use tract_data::prelude::TDim;

use crate::facts::{Fact, Facts};
use crate::graph::{float_attribute, input_at, int_attribute, output_at};
use crate::onnx::NodeProto;
use crate::operators::primitives::{Core, Primitives};
use crate::operators::row_positions::{given_positions, row_positions};
use crate::operators::rows::{Rows, has_no_new_rows};
use crate::operators::{LoweredNode, Operator, Target, unsupported};
use crate::recognize::reject::Reason;

/// The operator.
pub const OPERATOR: Operator =
    Operator::new("com.microsoft", "GroupQueryAttention", outputs, lower).counting_positions();

fn lower(s: &mut Primitives, node: &NodeProto, target: Target) -> Result<LoweredNode, Reason> {
    let refuse = |detail: &str| Err(unsupported(node, detail));
    let input = |position| input_at(node, position);
    let output = |position| output_at(node, position);
    if input(12).is_some()
        || input(13).is_some()
        || int_attribute(node, "kv_cache_bit_width", 0) != 0
    {
        return refuse(
            "its KV cache is quantized (kv_cache_bit_width): export with a floating-point cache, which a latent makes smaller in its place",
        );
    }
    if int_attribute(node, "sliding_window_cache", 0) != 0 {
        return refuse(
            "its cache is a ring that forgets (sliding_window_cache): export with a full-length cache, in onnxruntime-genai's model builder with the extra option windowed_kv_cache=false",
        );
    }
    if int_attribute(node, "local_window_size", -1) == 0 {
        return refuse(
            "its window is empty (local_window_size = 0): set the window's length, or -1 for none",
        );
    }
    if !matches!(int_attribute(node, "do_rotary", 0), 0 | 1) {
        return refuse(
            "do_rotary is neither 0 nor 1, the two values that ONNX Runtime defines: set one of them",
        );
    }
    if int_attribute(node, "causal", 1) == 0 {
        return refuse(
            "it is bidirectional (causal = 0), so that no token can be decoded from a cache: leave this model as it is",
        );
    }
    if output(3).is_some() {
        return refuse(
            "its scores (output_qk) are an output, which a latent product does not give: export without an output of attention scores",
        );
    }
    let (Some(query), Some(seqlens), Some(y)) = (input(0), input(5), output(0)) else {
        return refuse(
            "query, seqlens_k or output is missing, which the operator requires: export the model again",
        );
    };
    let (Some(past_key), Some(past_value)) = (input(3), input(4)) else {
        return refuse("it has no past and present: export with a cache");
    };
    let borrows = has_no_new_rows(s.facts, node);
    let (Some(present_key), Some(present_value)) = (match borrows {
        true => (Some(past_key), Some(past_value)),
        false => (output(1), output(2)),
    }) else {
        return refuse(
            "it reads a past and returns no present, as a layer that shares the keys and values of another: export it with presents of its own, or leave both layers with --allow-partial",
        );
    };
    let rows = Rows {
        query,
        past: past_key,
        seqlens,
        borrowed: borrows,
    };
    let (heads, kv_heads) = (
        int_attribute(node, "num_heads", 0),
        int_attribute(node, "kv_num_heads", 0),
    );
    let width = s
        .facts
        .shape(query)
        .filter(|shape| shape.len() == 3)
        .and_then(|shape| shape.last()?.as_i64());
    let (Some(width), Some(elem_type), true) = (
        width,
        s.facts.elem_type(query),
        heads > 0 && kv_heads > 0 && heads % kv_heads == 0,
    ) else {
        return refuse(
            "the width of its query or the number of its heads is not constant: export with a fixed hidden size, num_heads and kv_num_heads",
        );
    };
    let (q, k, v, size) = match (input(1), input(2)) {
        (Some(key), Some(value)) => (
            query.to_owned(),
            key.to_owned(),
            value.to_owned(),
            width / heads,
        ),
        (None, None) => {
            let size = width / (heads + 2 * kv_heads);
            let lengths = s.vector(&[heads * size, kv_heads * size, kv_heads * size]);
            let parts: Vec<String> = ["q", "k", "v"]
                .iter()
                .map(|p| s.free(format!("{y}/{p}_BTx")))
                .collect();
            let names: Vec<&str> = parts.iter().map(String::as_str).collect();
            s.named("Split", "split", &[query, &lengths], &names, |n| {
                n.with_int("axis", -1)
            });
            match parts.as_slice() {
                [q, k, v] => (q.clone(), k.clone(), v.clone(), size),
                _ => {
                    return refuse(
                        "its packed input does not hold queries, keys and values: export with separate inputs",
                    );
                }
            }
        }
        _ => {
            return refuse(
                "it has a key without a value, or a value without a key: export the model again",
            );
        }
    };
    let (q, k) = match (input(14), input(15)) {
        (Some(q_norm), Some(k_norm)) => (
            normalized(s, node, "q", &q, q_norm, heads, size),
            normalized(s, node, "k", &k, k_norm, kv_heads, size),
        ),
        _ => (q, k),
    };

    let (q, k) = match (int_attribute(node, "do_rotary", 0) != 0, input(7), input(8)) {
        (false, _, _) => (q, k),
        (true, Some(cos), Some(sin)) => {
            let Some(half) = s.facts.shape(cos).and_then(|shape| shape.get(1)?.as_i64()) else {
                return refuse(
                    "the width of its cos_cache is not constant: export with cos_cache as an initializer",
                );
            };
            // ONNX Runtime does not check their axes, and `std::terminate` ends the process where there is one axis.
            let odd = |given| s.facts.shape(given).is_some_and(|shape| shape.len() != 2);
            if input(9).is_some_and(odd) {
                return refuse(
                    "its position_ids do not have the two axes [batch, length] that the operator requires: export the model again",
                );
            }
            let positions = match (input(9), input(6), target) {
                (Some(given), Some(total), _) => given_positions(s, query, total, given),
                (Some(_), None, _) => {
                    return refuse(
                        "total_sequence_length is missing, which the operator requires: export the model again",
                    );
                }
                (None, _, Target::MatMul) => rows.start(s),
                (None, _, Target::Gqa) => row_positions(s, query, seqlens),
            };
            let mut rotate = |part: &str, x: &str, heads: i64| {
                s.with(
                    "RotaryEmbedding",
                    part,
                    &[x, &positions, cos, sin],
                    |mut n| {
                        n.domain = Some("com.microsoft".to_owned());
                        let n =
                            n.with_int("interleaved", int_attribute(node, "rotary_interleaved", 0));
                        match 2 * half < size {
                            true => n
                                .with_int("num_heads", heads)
                                .with_int("rotary_embedding_dim", 2 * half),
                            false => n,
                        }
                    },
                )
            };
            let q = rotate("q_rotated", &q, heads);
            match borrows {
                true => (q, k),
                false => (q, rotate("k_rotated", &k, kv_heads)),
            }
        }
        _ => {
            return refuse(
                "it rotates (do_rotary = 1) without cos_cache and sin_cache: export with both",
            );
        }
    };
    let q = s.heads("q", &q, heads, size);
    let sides = [
        ("k", past_key, k, present_key),
        ("v", past_value, v, present_value),
    ];
    for (side, past, new, present) in sides {
        if !borrows {
            let new = s.heads(side, &new, kv_heads, size);
            let append = format!("append_{side}");
            s.named("Concat", &append, &[past, &new], &[present], |n| {
                n.with_int("axis", 2)
            });
        }
    }
    if borrows {
        s.pass_on(node);
    }

    let window = Some(int_attribute(node, "local_window_size", -1)).filter(|&w| w >= 0);
    let key = format!("mask {} {elem_type} {window:?}", rows.lengths(s));
    let mask = s.shared(&key, |s| {
        let (count, columns) = (s.size("T", query, 1), s.size("S", present_key, 2));
        let start = match target {
            Target::MatMul => rows.start(s),
            // The operator masks internally; this mask is removed when the operator is restored. The rows of a batch may
            // have different lengths.
            Target::Gqa => rows.unchecked_start(s),
        };
        s.causal_bias(&start, &count, &columns, window, elem_type)
    });
    let mut biases = vec![mask];
    biases.extend(input(10).map(str::to_owned));
    let scale = match float_attribute(node, "scale", 0.0) {
        0.0 => 1.0 / (size as f64).sqrt(),
        scale => f64::from(scale),
    };
    // A smooth softmax is an attention sink of score zero for every head.
    let smooth = int_attribute(node, "smooth_softmax", 0) == 1;
    let zeros = (smooth && input(11).is_none()).then(|| {
        let zero = s.scalar(elem_type, 0.0);
        let count = s.vector(&[heads]);
        s.op("Expand", "no_sink", &[&zero, &count])
    });
    let score = s.core(&Core {
        query: &q,
        key: present_key,
        value: present_value,
        heads,
        kv_heads,
        head_size: size,
        value_size: size,
        scale,
        softcap: float_attribute(node, "softcap", 0.0),
        biases,
        sink: input(11).or(zeros.as_deref()),
        guard: false,
        elem_type,
        output: y,
        packed: true,
    });
    Ok(LoweredNode {
        score,
        grouped: Some(node.clone()),
    })
}

/// RMS normalization of each head (inputs 14 and 15).
fn normalized(
    s: &mut Primitives,
    node: &NodeProto,
    part: &str,
    x: &str,
    weight: &str,
    heads: i64,
    size: i64,
) -> String {
    let (split, joined) = (
        s.vector(&[0, 0, heads, size]),
        s.vector(&[0, 0, heads * size]),
    );
    let x = s.op("Reshape", &format!("{part}_norm_in"), &[x, &split]);
    let x = s.with(
        "SimplifiedLayerNormalization",
        &format!("{part}_norm"),
        &[&x, weight],
        |n| {
            n.with_int("axis", -1)
                .with_float("epsilon", float_attribute(node, "qk_norm_epsilon", 1e-6))
                .with_int("stash_type", 1)
        },
    );
    s.op("Reshape", &format!("{part}_normed"), &[&x, &joined])
}

/// Output facts for packed or separate inputs. The length of the presents is a fresh symbol, because a buffer may be
/// longer than its contents.
fn outputs(facts: &Facts, node: &NodeProto, inputs: &[&Fact]) -> Option<Vec<Fact>> {
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
    let present = |position: usize| {
        let past = inputs.get(position)?;
        let mut shape = past.shape.clone()?;
        *shape.get_mut(2)? = facts.fresh();
        // The present of a quantized cache has the element type of the past.
        Some(Fact::new(past.elem_type.or(query.elem_type), Some(shape)))
    };
    let unknown = || Fact::new(query.elem_type, None);
    let (key, value) = (present(3), present(4));
    Some(vec![
        Fact::new(query.elem_type, Some(output)),
        key.unwrap_or_else(unknown),
        value.unwrap_or_else(unknown),
    ])
}
