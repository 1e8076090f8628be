//! Changes of exports, each of which causes one reason in the first layer: of every reason that the tables of near misses and
//! of variants try less than twice.

use gqa2mla_passes::graph::build::node;
use gqa2mla_passes::onnx::GraphProto;
use gqa2mla_passes::recognize::site::Site;

use super::changes::*;

/// A fixture, the change of its graph, the reason's code, and parts of what the reason says.
pub type Cause = (
    &'static str,
    fn(&mut GraphProto, &Site),
    &'static str,
    &'static [&'static str],
);

pub const CAUSES: [Cause; 32] = [
    (
        "optimum-llama",
        |g, s| only_a_part(g, values(s), 2),
        "partial-read",
        &["only a part of the value is read (axis 2)", "'part'"],
    ),
    (
        "dynamo18-llama-mqa",
        values_repeated_before,
        "repeats-differ",
        &["1 KV heads for the keys, 8 for the values"],
    ),
    (
        "optimum-qwen3",
        |g, s| with_another_row(g, values(s), "Div"),
        "scale-varies",
        &[
            "the value is multiplied by 'row'",
            "differs from element to element",
        ],
    ),
    (
        "optimum-llama",
        |g, s| twice(g, s.score.0, true),
        "score-products",
        &["made of 2 products of queries and keys", "one softmax"],
    ),
    (
        "optimum-llama",
        |g, s| twice(g, s.output.0, false),
        "value-products",
        &[
            "the left operand of 2 products",
            "one product of probabilities and values",
        ],
    ),
    (
        "dynamo18-llama-mha",
        |g, s| g.node[s.output.0].input.swap(0, 1),
        "value-products",
        &["the right operand of a product"],
    ),
    (
        "dynamo18-llama-eager",
        |g, s| {
            turned(g, (s.output.0, 0));
        },
        "scores-rearranged",
        &["the probabilities pass Transpose", "'turned'"],
    ),
    // One KV head is no latent: nothing multiplies its rows.
    (
        "dynamo18-llama-mqa",
        |g, s| {
            turned(g, (s.output.0, 0));
        },
        "scores-rearranged",
        &["the probabilities pass Transpose", "'turned'"],
    ),
    (
        "dynamo18-llama-eager",
        without_softmax,
        "unknown-reader",
        &[
            "'past_key_values.0.key'",
            "a softmax, and a product with the values",
        ],
    ),
    // A Cast of the interface type, and a selection of beams, stand between the cache and the graph's inputs and outputs.
    (
        "keep_io-llama",
        without_softmax,
        "unknown-reader",
        &["'past_key_values.0.key'"],
    ),
    (
        "beams-llama",
        without_softmax,
        "unknown-reader",
        &["'past_key_values.0.key'"],
    ),
    (
        "dynamo18-llama",
        exchanged,
        "crossed-caches",
        &["goes in as 'past_key_values.0.key' comes out as 'present.0.value'"],
    ),
    (
        "dynamo18-llama-mha",
        |g, s| turned(g, values(s)),
        "other-layout",
        &["the value reaches the product as", "expected"],
    ),
    (
        "optimum-gpt_neox",
        |g, s| turned(g, keys(s)),
        "other-layout",
        &["the key reaches the product as", "expected"],
    ),
    (
        "optimum-llama",
        |g, _| kept_inside(g, "present.0.key"),
        "cache-not-returned",
        &[
            "'past_key_values.0.key' goes in",
            "'present.0.key' is no output",
        ],
    ),
    (
        "dynamo18-llama-mqa",
        |g, _| kept_inside(g, "present.0.value"),
        "cache-not-returned",
        &[
            "'past_key_values.0.value' goes in",
            "'present.0.value' is no output",
        ],
    ),
    (
        "dynamo18-llama-mha",
        |g, s| uncached(g, "value", &s.value.new.clone()),
        "half-cached",
        &["not cached alike"],
    ),
    (
        "optimum-gpt_neox",
        |g, s| uncached(g, "key", &s.key.new.clone()),
        "half-cached",
        &["not cached alike"],
    ),
    (
        "dynamo18-llama",
        queries_of_any_size,
        "operand-shape",
        &[
            "the query 'told_queries' has shape",
            "constant heads and head_size",
        ],
    ),
    (
        "optimum-llama",
        queries_of_any_size,
        "operand-shape",
        &["the query 'told_queries' has shape"],
    ),
    (
        "dynamo18-llama",
        queries_of_any_shape,
        "unknown-shape",
        &[
            "the query 'told_queries' cannot be inferred",
            "the output of Reshape 'told_queries' is unknown",
        ],
    ),
    (
        "optimum-llama",
        |g, s| {
            let lost = node("MeanVarianceNormalization", "lost", &[], &["lost"]);
            wrap(g, (s.score.0, 0), lost);
        },
        "unknown-shape",
        &["the output of MeanVarianceNormalization 'lost' is unknown"],
    ),
    (
        "dynamo18-llama",
        asked,
        "shape-reader",
        &[
            "is needed by 'asked'",
            "cannot be told from the latent cache",
        ],
    ),
    (
        "dynamo18-llama3-rope",
        asked,
        "shape-reader",
        &[
            "is needed by 'asked'",
            "cannot be told from the latent cache",
        ],
    ),
    (
        "static-llama",
        |g, _| written_elsewhere(g, "present.0.key"),
        "cache-form",
        &["is built by TensorScatter", "a static cache"],
    ),
    (
        "mobius-llama",
        |g, _| written_elsewhere(g, "updated_value_cache.0"),
        "cache-form",
        &["is built by TensorScatter", "a static cache"],
    ),
    (
        "dynamo18-llama-mqa",
        |g, s| only_a_part(g, keys(s), 3),
        "partial-read",
        &["only a part of the key is read"],
    ),
    (
        "dynamo18-llama-mha",
        |g, s| with_another_row(g, values(s), "Mul"),
        "scale-varies",
        &["the value is multiplied by 'row'"],
    ),
    (
        "dynamo18-qwen3",
        |g, s| twice(g, s.score.0, true),
        "score-products",
        &["made of 2 products of queries and keys"],
    ),
    (
        "optimum-gemma2",
        |g, s| turned(g, (s.output.0, 0)),
        "scores-rearranged",
        &["the probabilities pass Transpose"],
    ),
    (
        "optimum-qwen2",
        |g, _| {
            let softmax = g.node.iter_mut().find(|n| n.op_type() == "Softmax");
            softmax.unwrap().op_type = Some("LogSoftmax".to_owned());
        },
        "unknown-reader",
        &["'past_key_values.0.key'"],
    ),
    (
        "optimum-granite",
        exchanged,
        "crossed-caches",
        &["comes out as 'present.0.value'"],
    ),
];
