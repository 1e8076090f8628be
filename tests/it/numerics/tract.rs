//! The same in the other runtime, as far as it goes.

use std::collections::BTreeMap;

use super::*;
use crate::common::How;

/// Models that tract cannot run, and a part of what it says.
const NOT_IN_TRACT: [(&str, &str); 26] = [
    ("attention-past", "does not take boolean attention masks"),
    (IN_BF16, "Unknown DatumType Bfloat16"),
    ("dynamo23-llama", "does not take boolean attention masks"),
    (
        "dynamo23-llama-gqa",
        "does not take boolean attention masks",
    ),
    ("dynamo24-llama", "does not take boolean attention masks"),
    ("extended-llama", "Unimplemented(FusedMatMul)"),
    (
        "genai-gemma2",
        "GroupQueryAttention: softcap is unsupported",
    ),
    (
        "genai-gptoss",
        "packed QKV (absent key/value) is unsupported",
    ),
    (
        "genai-llama",
        "packed QKV (absent key/value) is unsupported",
    ),
    (
        "genai-llama-int4",
        "packed QKV (absent key/value) is unsupported",
    ),
    (
        "genai-longrope",
        "packed QKV (absent key/value) is unsupported",
    ),
    (
        "genai-mistral",
        "packed QKV (absent key/value) is unsupported",
    ),
    ("mobius-gemma4", "SkipSimplifiedLayerNormalization"),
    ("mobius-llama", "nonpad_kv_seqlen input is not supported"),
    ("mobius-qwen3", "nonpad_kv_seqlen input is not supported"),
    ("static-llama", "TensorScatter"),
    ("genai-lfm2", "Unimplemented(CausalConvWithState)"),
    ("genai-phi3", "packed QKV (absent key/value) is unsupported"),
    (
        "genai-qwen2",
        "packed QKV (absent key/value) is unsupported",
    ),
    (
        "multi_head-llama",
        "optional input #5 (bias / mask / past KV) is unsupported",
    ),
    // Its original runs: the rewritten graph checks the lengths of rows by a shape that is computed.
    ("genai-qwen3", "shape input is variable"),
    (
        "merged-llama",
        "Failed analyse for node #29 \"optimum::if\"",
    ),
    ("dynamo18-llama4", "TDim is not a number"),
    ("int8-llama", "Failed analyse for node #47 \"optimum::if\""),
    ("optimum-whisper", "optimum::if"),
    ("qdq_int4-llama", "Unknown DatumType Int4"),
];

#[test]
fn at_full_rank_nothing_is_lost_in_tract() {
    let cannot: BTreeMap<&str, &str> = NOT_IN_TRACT.into_iter().collect();
    for name in of_one_width() {
        let (before, after) = pair(&name, RewriteOptions::default());
        let tolerance = tolerance(&name);
        let found = compared(
            &before,
            &after,
            How {
                runtime: RuntimeKind::Tract,
                tolerance,
            },
        );
        match (found, cannot.get(name.as_str())) {
            (Ok(found), None) => {
                assert!(
                    found.rewritten_runtime.contains("tract"),
                    "{}",
                    found.rewritten_runtime
                );
                assert!(
                    found.passed(),
                    "{name}: {:e} is above {tolerance:e}",
                    found.max_ratio()
                );
            }
            (Err(said), Some(reason)) => assert!(said.contains(reason), "{name}: {said}"),
            (Ok(_), Some(reason)) => {
                panic!("{name} runs in tract now, strike it off the list: {reason}")
            }
            (Err(said), None) => panic!("{name}: {said}"),
        }
    }
}
