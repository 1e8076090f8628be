//! Integers that `GroupQueryAttention` reads: of latents, one or two to a byte, with second digits, and of its own heads.

use super::*;
use crate::common::{SINGLE, session};
use gqa2mla::runtime::RuntimeKind;
use gqa2mla::runtime::tensor::Tensor;
use gqa2mla::validate::prompt::feeds;
use gqa2mla::validate::runner::closed_by_trying;

/// Fixtures with the operator: with a window and a soft-cap, plain, with norms of queries and keys, with sinks.
const KEEP_THE_OPERATOR: [&str; 4] = ["genai-gemma2", "genai-llama", "genai-qwen3", "genai-gptoss"];

/// A prompt that the exporter's operator reads loses nothing at any size, and the first layer, whose hidden states are the same
/// in every rewrite, caches the integers that the operator of the form caches.
#[test]
fn a_prompt_that_the_operator_reads_loses_nothing_and_fills_the_same_cache() {
    let place = folder();
    let cases: [(&str, &[&str]); 6] = [
        ("8", &["--keep-heads"]),
        ("6", &["--keep-heads"]),
        ("4", &["--keep-heads"]),
        ("8", &["--target", "gqa"]),
        ("6", &["--target", "gqa"]),
        ("4", &["--target", "gqa"]),
    ];
    for (name, (bits, more)) in KEEP_THE_OPERATOR
        .into_iter()
        .flat_map(|n| cases.map(|c| (n, c)))
    {
        let rewritten = |new_tokens: &str| {
            let out = place.path().join("model.onnx");
            let model = fixture(name).join("model.onnx");
            let ran = rounded_to(
                bits,
                &model,
                &out,
                &[more, &["--new-tokens", new_tokens]].concat(),
            );
            assert_eq!(ran.code, 0, "{name} {bits} {more:?}: {ran:?}");
            let report = ran.json();
            let steps = report["validation"]["proof"]["steps"].as_array().unwrap();
            let step = |s: &Value| (s["past"] == 0, s["ratio"].as_f64().unwrap());
            (
                steps.iter().map(step).collect::<Vec<_>>(),
                first_cache(&out),
            )
        };
        let ((exact, cached), (latent, expected)) = (rewritten("prompt"), rewritten("latent"));
        assert_eq!(cached, expected, "{name} {bits} {more:?}");
        for ((is_prompt, exact), (_, latent)) in exact.into_iter().zip(latent) {
            assert_eq!(
                is_prompt,
                exact <= SINGLE,
                "{name} {bits} {more:?}: {exact:e}"
            );
            assert!(latent > ROUNDED, "{name} {bits} {more:?}: {latent:e}");
        }
    }
}

/// The caches of the first layer after a prompt.
fn first_cache(path: &Path) -> Vec<Tensor> {
    let model = crate::common::model_at(path);
    let interface = LanguageModel::of(&model.model.proto).unwrap().interface;
    let mut session = session(path, RuntimeKind::Ort).unwrap();
    let interface = closed_by_trying(session.as_mut(), &interface).unwrap();
    let feeds = feeds(&interface, &[3, 1, 4, 1, 5, 9, 2, 6]).unwrap();
    let outputs = session.run(&feeds).unwrap();
    let caches = outputs
        .into_iter()
        .filter(|(name, _)| name.starts_with("present.0."));
    caches.map(|(_, tensor)| tensor).collect()
}

/// The operator with integers of latents, and of its own heads.
#[test]
fn group_query_attention_reads_integers_with_and_without_a_latent() {
    let place = folder();
    for name in [
        "genai-llama",
        "genai-qwen2",
        "genai-qwen3",
        "genai-gptoss",
        "genai-gemma2",
    ] {
        for way in [&["--target", "gqa"][..], &["--keep-heads"]] {
            let out = place.path().join(format!("{name}{}.onnx", way[0]));
            let ran = rounded(&fixture(name).join("model.onnx"), &out, way);
            assert_eq!(ran.code, 0, "{name} {way:?}: {ran:?}");
            let report = ran.json();
            assert_eq!(report["rewrite"]["target"], "gqa");
            let (ratio, before, after) = measured(&report);
            assert!(
                (ROUNDED..BOUND).contains(&ratio),
                "{name} {way:?}: {ratio:e}"
            );
            assert_eq!(after, before / 4.0, "{name} {way:?}");
            assert!(caches_integers(&out), "{name} {way:?}");
        }
    }
}

/// Two numbers a byte, of latents and of its own heads.
#[test]
fn group_query_attention_reads_two_numbers_a_byte() {
    let place = folder();
    for name in ["genai-llama", "genai-qwen2", "genai-qwen3", "genai-gptoss"] {
        let model = fixture(name).join("model.onnx");
        for way in [&["--target", "gqa"][..], &["--keep-heads"]] {
            let out = place.path().join(format!("{name}{}.onnx", way[0]));
            let ran = rounded_to("4", &model, &out, way);
            assert_eq!(ran.code, 0, "{name} {way:?}: {ran:?}");
            let report = ran.json();
            assert_eq!(report["rewrite"]["cache_bits"], 4);
            let (ratio, before, after) = measured(&report);
            let kl = report["quality"]["mean_kl"].as_f64().unwrap();
            assert!(
                ratio > ROUNDED && (1e-3..BOUND_OF_FOUR).contains(&kl),
                "{name} {way:?}: {ratio:e}, {kl}"
            );
            assert_eq!(after, before / 8.0, "{name} {way:?}");
            let told = &report["rewrite"]["cache_bytes_per_token_after"];
            assert_eq!(told.as_f64(), Some(after), "{name} {way:?}");
            assert!(caches_integers(&out), "{name} {way:?}");
            // The positions of a context are known in the operator's own target as well.
            assert_eq!(report["statistics"]["bound_to_positions"], 0, "{report:#}");
        }
    }
}

/// Two digits of the first half of the channels, one of the others: between 8 bits and 4 in bytes, near 8 in what is lost.
#[test]
fn second_digits_lose_far_less_than_one_digit_alone() {
    let place = folder();
    let names = ["genai-llama", "genai-qwen2", "genai-gptoss"];
    let ways = [&["--target", "gqa"][..], &["--keep-heads"]];
    for (name, way) in names.into_iter().flat_map(|n| ways.map(|way| (n, way))) {
        let model = fixture(name).join("model.onnx");
        let lost = |bits: &str, share: f64| {
            let out = place.path().join(format!("{name}.{bits}.onnx"));
            let ran = rounded_to(bits, &model, &out, way);
            assert_eq!(ran.code, 0, "{name} {bits} {way:?}: {ran:?}");
            let report = ran.json();
            let (_, before, after) = measured(&report);
            assert_eq!(after, before * share, "{name} {bits}");
            let told = &report["rewrite"]["cache_bytes_per_token_after"];
            assert_eq!(told.as_f64(), Some(after), "{name} {bits}");
            report["quality"]["mean_kl"].as_f64().unwrap()
        };
        // Of fp32: a digit is an eighth of a number, and every channel has one and a half on average.
        let (six, four) = (lost("6", 1.5 / 8.0), lost("4", 1.0 / 8.0));
        // Where all channels matter alike, as with random weights, the half that has one digit loses half of what all do.
        assert!(six > 0.0 && 1.8 * six < four, "{name}: {six:e} {four:e}");
    }
}

/// A folder for its stack: the shape of kept heads is in the configuration already, and the session tells the type.
#[test]
fn kept_heads_need_no_other_configuration() {
    let place = folder();
    let out = place.path().join("out");
    let ran = rounded(&fixture("genai-llama"), &out, &["--keep-heads"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let config = |at: &Path| std::fs::read(at.join("genai_config.json")).unwrap();
    assert_eq!(config(&out), config(&fixture("genai-llama")));
}
