//! Every attribute and optional input of an attention operator that is lowered, against ONNX Runtime's own kernel.

mod one_axis;
mod ragged;

use crate::common::{SINGLE, compared, exact_after, grouped, in_ort, loaded, rewritten};
use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::onnx::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};
use gqa2mla_passes::{Absorbed, Form, RewriteOptions};

fn graph(model: &mut LoadedModel) -> &mut GraphProto {
    model.model.proto.graph.as_mut().unwrap()
}

fn operators<'g>(
    graph: &'g mut GraphProto,
    op: &'g str,
) -> impl Iterator<Item = &'g mut NodeProto> {
    graph.node.iter_mut().filter(move |n| n.op_type() == op)
}

fn set(node: &mut NodeProto, change: impl FnOnce(NodeProto) -> NodeProto, name: &str) {
    node.attribute.retain(|a| a.name() != name);
    *node = change(node.clone());
}

fn floats(name: &str, dims: &[i64], values: impl Iterator<Item = f32>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.to_vec(),
        data_type: Some(DataType::Float as i32),
        raw_data: Some(values.flat_map(f32::to_le_bytes).collect::<Vec<_>>().into()),
        ..TensorProto::default()
    }
}

/// One change of all operators of a fixture.
type Change = fn(&mut GraphProto);

/// Changes the fixture, and holds the rewrite to exactness and to having changed something.
fn holds(fixture: &str, what: &str, change: Change, form: &dyn Form) {
    let (before, _) = exact_after(fixture, what, change, form);
    // An attribute that changes nothing would prove nothing.
    let effect = compared(&loaded(fixture), &before, in_ort(SINGLE)).unwrap();
    assert!(
        effect.max_ratio() > 100.0 * SINGLE,
        "{fixture}, {what}: the change has no effect"
    );
}

#[test]
fn attention() {
    let changes: [(&str, Change); 4] = [
        ("soft-capped", |g| {
            operators(g, "Attention")
                .for_each(|n| set(n, |n| n.with_float("softcap", 1.5), "softcap"));
        }),
        ("another scale", |g| {
            operators(g, "Attention").for_each(|n| set(n, |n| n.with_float("scale", 0.7), "scale"));
        }),
        (
            "causal by attribute, without a mask, and soft-capped",
            |g| {
                operators(g, "Attention").for_each(|n| {
                    n.input[3] = String::new();
                    set(n, |n| n.with_int("is_causal", 1), "is_causal");
                    set(n, |n| n.with_float("softcap", 2.0), "softcap");
                });
            },
        ),
        ("no mask at all", |g| {
            operators(g, "Attention").for_each(|n| n.input[3] = String::new());
        }),
    ];
    for (what, change) in changes {
        holds("attention-past", what, change, &Absorbed);
    }
}

#[test]
fn attention_takes_its_default_scale_from_the_head_size() {
    let mut before = loaded("dynamo23-llama-gqa");
    let mut after = loaded("dynamo23-llama-gqa");
    for model in [&mut before, &mut after] {
        for n in operators(graph(model), "Attention") {
            n.attribute.retain(|a| a.name() != "scale");
        }
    }
    rewritten(&mut after, RewriteOptions::default()).unwrap();
    assert!(compared(&before, &after, in_ort(SINGLE)).unwrap().passed());
}

#[test]
fn grouped_query_attention() {
    let changes: [(&str, Change); 7] = [
        ("soft-capped", |g| {
            operators(g, "GroupQueryAttention")
                .for_each(|n| set(n, |n| n.with_float("softcap", 1.5), "softcap"));
        }),
        ("a window of three", |g| {
            operators(g, "GroupQueryAttention").for_each(|n| {
                set(
                    n,
                    |n| n.with_int("local_window_size", 3),
                    "local_window_size",
                )
            });
        }),
        ("a window of one", |g| {
            operators(g, "GroupQueryAttention").for_each(|n| {
                set(
                    n,
                    |n| n.with_int("local_window_size", 1),
                    "local_window_size",
                )
            });
        }),
        ("a smooth softmax", |g| {
            operators(g, "GroupQueryAttention")
                .for_each(|n| set(n, |n| n.with_int("smooth_softmax", 1), "smooth_softmax"));
        }),
        ("interleaved rotation", |g| {
            operators(g, "GroupQueryAttention").for_each(|n| {
                set(
                    n,
                    |n| n.with_int("rotary_interleaved", 1),
                    "rotary_interleaved",
                )
            });
        }),
        ("no rotation", |g| {
            operators(g, "GroupQueryAttention").for_each(|n| {
                set(n, |n| n.with_int("do_rotary", 0), "do_rotary");
                n.input[7] = String::new();
                n.input[8] = String::new();
            });
        }),
        ("a sink for every head", |g| {
            g.initializer
                .push(floats("sink", &[8], (0..8).map(|i| i as f32 * 0.5 - 1.0)));
            operators(g, "GroupQueryAttention").for_each(|n| {
                n.input.resize(12, String::new());
                n.input[11] = "sink".to_owned();
            });
        }),
    ];
    for (what, change) in changes {
        for form in [&Absorbed as &dyn Form, grouped()] {
            holds("genai-llama", what, change, form);
        }
    }
}

#[test]
fn grouped_query_attention_takes_scale_zero_for_the_default() {
    let mut before = loaded("genai-llama");
    let mut after = loaded("genai-llama");
    for model in [&mut before, &mut after] {
        operators(graph(model), "GroupQueryAttention")
            .for_each(|n| set(n, |n| n.with_float("scale", 0.0), "scale"));
    }
    rewritten(&mut after, RewriteOptions::default()).unwrap();
    assert!(compared(&before, &after, in_ort(SINGLE)).unwrap().passed());
}

#[test]
fn multi_head_attention() {
    let changes: [(&str, Change); 3] = [
        ("another scale", |g| {
            operators(g, "MultiHeadAttention")
                .for_each(|n| set(n, |n| n.with_float("scale", 0.7), "scale"));
        }),
        ("causal by attribute, without a mask", |g| {
            operators(g, "MultiHeadAttention").for_each(|n| {
                n.input[5] = String::new();
                set(n, |n| n.with_int("unidirectional", 1), "unidirectional");
            });
        }),
        ("no mask at all", |g| {
            operators(g, "MultiHeadAttention").for_each(|n| n.input[5] = String::new());
        }),
    ];
    for (what, change) in changes {
        holds("multi_head-llama", what, change, &Absorbed);
    }
}

/// What has no lowering is refused under the operator's name, with what stands in the way.
#[test]
fn refused_by_name() {
    let cases: [(&str, Change, &str); 6] = [
        (
            "genai-llama",
            |g| {
                operators(g, "GroupQueryAttention").for_each(|n| {
                    set(
                        n,
                        |n| n.with_int("kv_cache_bit_width", 8),
                        "kv_cache_bit_width",
                    )
                });
            },
            "quantized",
        ),
        (
            "genai-llama",
            |g| {
                operators(g, "GroupQueryAttention").for_each(|n| {
                    set(
                        n,
                        |n| n.with_int("sliding_window_cache", 1),
                        "sliding_window_cache",
                    )
                });
            },
            "ring",
        ),
        (
            "genai-llama",
            |g| {
                operators(g, "GroupQueryAttention")
                    .for_each(|n| n.op_type = Some("PagedAttention".to_owned()));
            },
            "paged",
        ),
        (
            "genai-llama",
            |g| {
                operators(g, "GroupQueryAttention")
                    .for_each(|n| n.op_type = Some("SparseAttention".to_owned()));
            },
            "sparse",
        ),
        (
            "attention-past",
            |g| {
                g.initializer
                    .push(gqa2mla_passes::graph::build::int64_vector("lengths", &[8]));
                operators(g, "Attention").for_each(|n| {
                    n.input.resize(7, String::new());
                    n.input[6] = "lengths".to_owned();
                });
            },
            "nonpad_kv_seqlen",
        ),
        (
            "multi_head-llama",
            |g| {
                g.initializer
                    .push(floats("bias", &[192], (0..192).map(|_| 0.0)));
                operators(g, "MultiHeadAttention").for_each(|n| n.input[3] = "bias".to_owned());
            },
            "bias",
        ),
    ];
    for (fixture, change, word) in cases {
        let mut model = loaded(fixture);
        change(graph(&mut model));
        let found = gqa2mla_passes::inspect(&model.model).unwrap();
        assert!(found.sites.is_empty(), "{fixture}, {word}");
        for reject in &found.rejects {
            assert_eq!(reject.reason.code(), "unsupported-operator", "{reject}");
            assert!(reject.to_string().contains(word), "{reject}");
        }
        assert_eq!(found.rejects.len(), 2, "{fixture}, {word}");
    }
}

/// Keys of magnitude 500 leave little room in half precision, whose largest number is 65,504.
#[test]
fn large_keys_do_not_overflow_half_precision() {
    let scaled = || {
        let mut model = loaded("dynamo18-llama-fp16");
        let g = graph(&mut model);
        let projections: Vec<String> = g
            .node
            .iter()
            .filter(|n| n.op_type() == "MatMul")
            .map(|n| n.input[1].clone())
            .collect();
        for tensor in &mut g.initializer {
            // The first two projections of a layer are those of queries [40, 128] and keys [40, 32].
            let factor = match (
                projections.iter().position(|p| p == tensor.name()),
                tensor.dims.as_slice(),
            ) {
                (Some(_), [40, 128]) if tensor.name() != projections[0] => continue,
                (Some(0), _) => 1.0 / 160.0,
                (Some(1), _) => 160.0,
                _ => continue,
            };
            let raw = tensor.raw_data.take().unwrap();
            let values = raw.chunks_exact(2).flat_map(|b| {
                let value = half::f16::from_le_bytes([b[0], b[1]]).to_f32() * factor;
                half::f16::from_f32(value).to_le_bytes()
            });
            tensor.raw_data = Some(values.collect::<Vec<_>>().into());
        }
        model
    };
    let before = scaled();
    let mut after = scaled();
    rewritten(&mut after, RewriteOptions::default()).unwrap();
    let comparison = compared(&before, &after, in_ort(crate::common::HALF)).unwrap();
    assert!(comparison.passed(), "{:e}", comparison.max_ratio());
    let effect = compared(
        &loaded("dynamo18-llama-fp16"),
        &before,
        in_ort(crate::common::HALF),
    )
    .unwrap();
    // Queries were divided by what keys were multiplied with, so the logits stay where they were.
    assert!(effect.passed(), "{:e}", effect.max_ratio());
}
