//! The near misses of the fixtures, and what each is refused for.

/// What becomes of the layers that are recognised, when the user asks for as much as can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// One is rewritten, and nothing is lost.
    Exact,
    /// None is left.
    Nothing,
    /// The model cannot be run as a language model is, before and after, so nothing is claimed.
    Unproved,
}

use Rest::{Exact, Nothing, Unproved};

/// A model, the reason's code, the node, a part of what was found and of what was expected, and the rest.
pub type Case = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    Rest,
);

pub const CASES: [Case; 19] = [
    (
        "near_miss/cache_heads_in_sequence.onnx",
        "cache-axis",
        "node_cat_7",
        "grows on axis 1",
        "expected axis 2",
        Exact,
    ),
    // Its past and present are of one length and other heads: no second step can read what the first has left.
    (
        "near_miss/cache_other_axis.onnx",
        "cache-axis",
        "node_cat_7",
        "grows on axis 1",
        "expected axis 2",
        Unproved,
    ),
    (
        "near_miss/cache_prepended.onnx",
        "cache-form",
        "node_cat_7",
        "is built by Concat",
        "expected Concat of a past input and the new rows, in that order",
        Exact,
    ),
    (
        "near_miss/cache_second_reader.onnx",
        "second-reader",
        "node_cache_total",
        "'present.0.key' on the way from the key cache to the product is also read by ReduceSum",
        "a latent cache could not serve",
        Exact,
    ),
    (
        "near_miss/past_second_reader.onnx",
        "second-reader",
        "node_cache_total",
        "'past_key_values.0.value' on the way from the value cache to the product is also read by ReduceSum",
        "a latent cache could not serve",
        Exact,
    ),
    (
        "near_miss/value_cache_shared.onnx",
        "shared-cache",
        "node_MatMul_260",
        "the cache 'present.0.value' also serves layer 1",
        "one latent serves attentions that read the same keys and values",
        Nothing,
    ),
    (
        "near_miss/expand_interleaved.onnx",
        "interleaved-heads",
        "node_Mul_256",
        "query head h reads KV head h mod 2",
        "expected floor(h / 4)",
        Exact,
    ),
    (
        "near_miss/tile_interleaved.onnx",
        "interleaved-heads",
        "node_Mul_256",
        "query head h reads KV head h mod 2",
        "expected floor(h / 4)",
        Exact,
    ),
    (
        "near_miss/graph_output_inside.onnx",
        "output-inside",
        "node__unsafe_view",
        "'_unsafe_view' on the way from the key cache to the product is an output of the graph",
        "a latent cache could not serve",
        Exact,
    ),
    (
        "near_miss/key_sliced.onnx",
        "partial-read",
        "node_key_sliced",
        "only a part of the key is read (axis 2)",
        "expected all of it",
        Exact,
    ),
    (
        "near_miss/kv_repeat_differs.onnx",
        "repeats-differ",
        "node_scaled_dot_product_attention",
        "2 KV heads for the keys, 4 for the values",
        "different factors",
        Exact,
    ),
    (
        "near_miss/reshape_instead_of_transpose.onnx",
        "opaque-operator",
        "node_key_BHdS",
        "the key passes Reshape between the cache and the product",
        "cannot be proved",
        Exact,
    ),
    (
        "near_miss/scale_not_constant.onnx",
        "scale-not-constant",
        "node_key_scaled",
        "multiplied by 'key_scale', a scale that is not constant",
        "expected a constant scalar",
        Exact,
    ),
    (
        "near_miss/scale_per_head.onnx",
        "scale-varies",
        "node_key_scaled",
        "multiplied by 'head_scales', a constant that differs from element to element",
        "expected one scalar",
        Exact,
    ),
    (
        "near_miss/score_of_two_products.onnx",
        "score-products",
        "node_Softmax_262",
        "the probabilities are made of 2 products of queries and keys",
        "expected one such product in front of one softmax",
        Exact,
    ),
    (
        "near_miss/value_is_key_heads_swapped.onnx",
        "permuted-heads",
        "node_value_swapped",
        "picked in the order [1, 0]",
        "no repetition of each head in turn",
        Exact,
    ),
    (
        "near_miss/value_reads_key.onnx",
        "second-reader",
        "node_scaled_dot_product_attention",
        "also read by MatMul 'node_scaled_dot_product_attention'",
        "a latent cache could not serve",
        Exact,
    ),
    (
        "dynamo18-latent",
        "already-latent",
        "node_cat_5",
        "which is a latent already",
        "nothing to gain",
        Nothing,
    ),
    (
        "genai-gemma2-ring",
        "unsupported-operator",
        "/model/layers.0/attn/GroupQueryAttention",
        "its cache is a ring that forgets",
        "export with a full-length cache",
        Exact,
    ),
];
