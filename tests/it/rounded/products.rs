//! Products of one token with a cache of integers: `--new-tokens prompt`.

use super::*;
use crate::common::session;
use gqa2mla::runtime::RuntimeKind;
use gqa2mla::runtime::tensor::{Data, Tensor};
use gqa2mla::validate::prompt::feeds;
use gqa2mla::validate::runner::closed_by_trying;

/// Dialects with what the products meet: plain, one KV head, half precision, a soft-cap, sinks, heads of other sizes for keys and
/// values, an operator that is expanded, norms of queries and keys.
const DIALECTS: [&str; 8] = [
    "optimum-llama",
    "dynamo18-llama-mqa",
    "dynamo18-llama-fp16",
    "dynamo18-gemma2-eager",
    "dynamo18-gptoss",
    "dynamo18-dv",
    "genai-llama",
    "optimum-qwen3",
];

/// The steps of one token, and those of several behind a past, read the same integers, with the runtime's optimizations and
/// without them, whether the cache is appended or written in place. The prompt is exact.
#[test]
fn one_token_and_several_read_the_same_integers() {
    let place = folder();
    for name in DIALECTS {
        for cache_io in ["append", "inplace"] {
            let out = place.path().join("model.onnx");
            let more = [
                "--new-tokens",
                "prompt",
                "--target",
                "matmul",
                "--cache-io",
                cache_io,
            ];
            let ran = rounded(&fixture(name).join("model.onnx"), &out, &more);
            assert_eq!(ran.code, 0, "{name} {cache_io}: {ran:?}");
            assert!(caches_integers(&out), "{name} {cache_io}");
            let report = ran.json();
            for way in ["proof", "optimized"] {
                let steps = report["validation"][way]["steps"].as_array().unwrap();
                let mut later = [0.0f64, 0.0];
                for step in steps {
                    let (tokens, ratio) = (&step["tokens"], step["ratio"].as_f64().unwrap());
                    match step["past"] == 0 {
                        true => assert!(
                            ratio < crate::common::HALF,
                            "{name} {cache_io} {way}: {step}"
                        ),
                        false => later[usize::from(*tokens == 1)] += ratio,
                    }
                    assert!(ratio < BOUND, "{name} {cache_io} {way}: {step}");
                }
                assert!(
                    later.iter().all(|&sum| sum > ROUNDED),
                    "{name} {cache_io} {way}: {later:?}"
                );
            }
        }
    }
}

/// The number of cached rows of the test below: each has a probability of a fifth of the last digit.
const LONG: usize = 150_000;

/// The logits of one token behind `LONG` rows of small numbers, counted from `zero`.
fn behind_a_long_past(path: &Path, row: impl Fn(usize) -> Data) -> Vec<f32> {
    let model = crate::common::model_at(path);
    let interface = LanguageModel::of(&model.model.proto).unwrap().interface;
    let mut session = session(path, RuntimeKind::Ort).unwrap();
    let interface = closed_by_trying(session.as_mut(), &interface).unwrap();
    let mut inputs = feeds(&interface, &[3]).unwrap();
    for (name, tensor) in &mut inputs {
        *tensor = match name.as_str() {
            _ if name.starts_with("past") => {
                let width = tensor.shape[3];
                Tensor::new(vec![1, 1, LONG, width], row(LONG * width)).unwrap()
            }
            "attention_mask" => {
                Tensor::new(vec![1, LONG + 1], Data::I64(vec![1; LONG + 1])).unwrap()
            }
            "position_ids" => Tensor::new(vec![1, 1], Data::I64(vec![LONG as i64])).unwrap(),
            _ => continue,
        };
    }
    let outputs = session.run(&inputs).unwrap();
    let (_, logits) = outputs
        .into_iter()
        .find(|(name, _)| name == "logits")
        .unwrap();
    logits.to_f32()
}

/// Probabilities that are all smaller than the last digit are not lost: their digits are spread over the rows.
#[test]
fn a_long_past_of_equal_weights_keeps_its_sum() {
    let place = folder();
    let model = fixture("optimum-llama").join("model.onnx");
    let logits = |new_tokens: &str| {
        let out = place.path().join(format!("{new_tokens}.onnx"));
        let ran = rounded(&model, &out, &["--new-tokens", new_tokens]);
        assert_eq!(ran.code, 0, "{new_tokens}: {ran:?}");
        behind_a_long_past(&out, |count| {
            let small = (0..count).map(|i| (i * 7 % 11) as i8 + 20);
            match new_tokens {
                "latent" => Data::I8(small.collect()),
                _ => Data::U8(small.map(|n| n as u8 + 128).collect()),
            }
        })
    };
    let (floats, integers) = (logits("latent"), logits("prompt"));
    let largest = |all: &mut dyn Iterator<Item = f32>| all.fold(0.0f32, |m, v| m.max(v.abs()));
    let difference = largest(&mut floats.iter().zip(&integers).map(|(a, b)| a - b));
    let ratio = difference / largest(&mut floats.iter().copied());
    assert!(ratio < 1e-2, "{ratio}");
}
