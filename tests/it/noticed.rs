//! Attention in a spelling that is not followed, or that a caller can change, is refused by name: never passed over, and
//! never rewritten as something that it is not.

use crate::common::{fixture, folder, python, root, with};
use serde_json::{Value, json};

/// A variant that tests/python/variants.py makes, and the reason that its first layer gets.
const VARIANTS: [(&str, &str); 7] = [
    ("reshape", "scores-rearranged"),
    ("einsum", "unsupported-operator"),
    ("sigmoid", "unknown-reader"),
    ("overridable", "scale-not-constant"),
    ("past_output", "output-inside"),
    ("crossed", "crossed-caches"),
    ("step", "opaque-operator"),
];

fn codes(told: &Value) -> Vec<String> {
    let rejects = told["rejects"].as_array().unwrap();
    rejects
        .iter()
        .map(|r| r["code"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn what_is_not_followed_is_refused_by_name() {
    let place = folder();
    let script = std::fs::read_to_string(root().join("tests/python/variants.py")).unwrap();
    let source = fixture("optimum-llama").join("model.onnx");
    python(&script, &[&source, place.path()]);
    for (name, code) in VARIANTS {
        let model = place.path().join(format!("{name}.onnx"));
        let ran = with(&[&"inspect", &model, &"--json"]);
        assert_eq!(ran.code, 3, "{name}: {ran:?}");
        let told = ran.json();
        assert!(codes(&told).iter().any(|c| c == code), "{name}: {told:#}");
        let out = place.path().join("out.onnx");
        let ran = with(&[&"rewrite", &model, &"-o", &out]);
        assert_eq!(ran.code, 3, "{name}: {ran:?}");
        assert!(!out.exists(), "{name}: something was written");
    }
}

#[test]
fn what_a_rewrite_has_made_is_known_as_latent() {
    let place = folder();
    for (name, options) in [
        ("optimum-llama", ["--target", "matmul"]),
        ("dynamo18-llama", ["--target", "matmul"]),
        ("genai-llama", ["--target", "matmul"]),
    ] {
        let out = place.path().join("latent.onnx");
        let ran = with(&[
            &"rewrite",
            &fixture(name),
            &"-o",
            &out,
            &options[0],
            &options[1],
            &"--no-validate",
        ]);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let ran = with(&[&"inspect", &out, &"--json"]);
        assert_eq!(ran.code, 3, "{name}: {ran:?}");
        assert_eq!(
            json!(codes(&ran.json())),
            json!(["already-latent", "already-latent"]),
            "{name}"
        );
    }
}

/// An operator around one latent head is an attention with one KV head: it can be looked at, and rewritten again.
#[test]
fn a_rewrite_that_kept_its_operator_can_be_read_again() {
    let place = folder();
    let (once, twice) = (
        place.path().join("once.onnx"),
        place.path().join("twice.onnx"),
    );
    let ran = with(&[
        &"rewrite",
        &fixture("genai-llama"),
        &"-o",
        &once,
        &"--target",
        &"gqa",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let told = with(&[&"inspect", &once, &"--json"]).json();
    assert_eq!(
        json!([told["recognised"], told["sites"][0]["kv_heads"]]),
        json!([2, 1])
    );
    let ran = with(&[&"rewrite", &once, &"-o", &twice]);
    assert_eq!(ran.code, 0, "{ran:?}");
}
