//! Integers that `GroupQueryAttention` reads: of latents, one or two to a byte, with second digits, and of its own heads.

use super::*;
use crate::common::SINGLE;

/// Fixtures with the operator: with a window and a soft-cap, plain, with norms of queries and keys, with sinks.
const KEEP_THE_OPERATOR: [&str; 4] = ["genai-gemma2", "genai-llama", "genai-qwen3", "genai-gptoss"];

/// The exporter's operator reads what fills an empty cache: that loses nothing at any size. Later steps read what the operator
/// of the form would have cached itself, so that they differ from a model without that by rounding ties alone.
#[test]
fn a_prompt_that_the_operator_reads_loses_nothing_and_fills_the_same_cache() {
    let place = folder();
    for name in recognised_fixtures() {
        let heads = |bits: &'static str| vec!["--cache-bits", bits, "--keep-heads"];
        let latents = |bits: &'static str| vec!["--cache-bits", bits, "--target", "gqa"];
        if !KEEP_THE_OPERATOR.contains(&name.as_str()) {
            continue;
        }
        for more in [
            heads("8"),
            heads("4"),
            latents("8"),
            latents("6"),
            latents("4"),
        ] {
            let steps = |new_tokens: &str| {
                let out = place.path().join(format!("{name}.onnx"));
                let model = fixture(&name).join("model.onnx");
                let more = [more.as_slice(), &["--new-tokens", new_tokens]].concat();
                let ran = rounded_to(more[1], &model, &out, &more[2..]);
                assert_eq!(ran.code, 0, "{name} {more:?}: {ran:?}");
                let report = ran.json();
                let steps = report["validation"]["proof"]["steps"].as_array().unwrap();
                let step = |s: &Value| (s["past"].as_u64().unwrap(), s["ratio"].as_f64().unwrap());
                steps.iter().map(step).collect::<Vec<_>>()
            };
            let (exact, latent) = (steps("prompt"), steps("latent"));
            for ((past, exact), (_, latent)) in exact.iter().zip(&latent) {
                if *past == 0 {
                    assert!(*exact <= SINGLE, "{name} {more:?}: {exact:e}");
                    assert!(*latent > ROUNDED, "{name} {more:?}: {latent:e}");
                } else {
                    assert!(*exact > ROUNDED, "{name} {more:?}: {exact:e}");
                    // The hidden states of the prompt are exact in one and not in the other, and so is what they cache.
                    assert!(
                        *exact < 3.0 * latent + BOUND,
                        "{name} {more:?}: {exact:e} {latent:e}"
                    );
                }
            }
        }
    }
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
    for name in ["genai-llama", "genai-qwen2", "genai-gptoss"] {
        let model = fixture(name).join("model.onnx");
        let lost = |bits: &str, share: f64| {
            let out = place.path().join(format!("{name}.{bits}.onnx"));
            let ran = rounded_to(bits, &model, &out, &["--target", "gqa"]);
            assert_eq!(ran.code, 0, "{name} {bits}: {ran:?}");
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
    let out = place.path().join("kept.onnx");
    let kept = rounded_to("6", &fixture("genai-llama"), &out, &["--keep-heads"]);
    assert_eq!(kept.code, 2, "{kept:?}");
    assert!(kept.stderr.contains("use --cache-bits 8 or 4"), "{kept:?}");
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
