//! `compare`: what is measured, what is left out, and what is said where nothing is left.

use std::path::Path;

use serde_json::json;

use crate::common::{Ran, fixture, folder, root, with};

/// Compares ways on a fixture, in few tokens.
fn compare(model: &str, more: &[&str]) -> Ran {
    let tokens = root().join("fixtures/tokens.json");
    let model = fixture(model);
    let mut arguments: Vec<&dyn AsRef<Path>> = vec![
        &"compare",
        &model,
        &"--token-ids",
        &tokens,
        &"--length",
        &"128",
        &"--test-tokens",
        &"128",
        &"--reconstruct",
        &"0",
    ];
    arguments.extend(more.iter().map(|m| m as &dyn AsRef<Path>));
    with(&arguments)
}

#[test]
fn a_way_that_the_model_cannot_take_is_told_with_its_reason() {
    let options = ["--ways", "weights,kept-heads", "--bits", "16,8", "--json"];
    let ran = compare(
        "optimum-llama",
        &[&options[..], &["--cache-ratios", "50%"]].concat(),
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let told = ran.json();
    assert_eq!(told["rows"].as_array().unwrap().len(), 1, "{told:#}");
    let left = &told["left_out"][0];
    assert_eq!(
        json!([left["way"], left["bits"]]),
        json!(["kept-heads", 8]),
        "{told:#}"
    );
    let reason = left["reason"].as_str().unwrap();
    assert!(reason.contains("GroupQueryAttention"), "{reason}");
}

#[test]
fn a_comparison_of_nothing_is_refused() {
    let ran = compare("optimum-llama", &["--ways", "kept-heads", "--bits", "8"]);
    assert_ne!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("GroupQueryAttention"), "{ran:?}");
    assert_eq!(ran.stdout, "");
}

#[test]
fn ratios_of_the_same_ranks_are_measured_once() {
    let options = ["--ways", "plain", "--bits", "16", "--json"];
    let ratios = ["--cache-ratios", "0.5,0.501,0.75"];
    let told = compare("optimum-llama", &[&options[..], &ratios[..]].concat()).json();
    assert_eq!(told["rows"].as_array().unwrap().len(), 2, "{told:#}");
}

/// The rotation tables of this model have 256 rows: longer sequences cannot be run.
#[test]
fn sequences_end_where_the_position_tables_do() {
    let place = folder();
    let (tokens, out) = (
        root().join("fixtures/tokens.json"),
        place.path().join("stats"),
    );
    let calibrate = |more: &[&str]| {
        let model = fixture("genai-llama").join("model.onnx");
        let mut arguments: Vec<&dyn AsRef<Path>> =
            vec![&"calibrate", &model, &"--token-ids", &tokens, &"-o", &out];
        arguments.extend(more.iter().map(|m| m as &dyn AsRef<Path>));
        with(&arguments)
    };
    let told = calibrate(&["--json"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(told.json()["length"], json!(256));
    for (length, words) in [
        ("300", "the position tables of the model end after 256"),
        ("1", "expected a number of tokens, 2 or more"),
    ] {
        let ran = calibrate(&["--length", length]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
    let long = compare("genai-llama", &["--context", "300"]);
    assert_eq!(long.code, 2, "{long:?}");
    assert!(long.stderr.contains("ask for at most 256"), "{long:?}");
}

/// Rows of unequal length fail in what is left of GroupQueryAttention as they do in it, so that no batch is padded.
#[test]
fn two_rewrites_of_one_model_are_compared_as_a_rewrite_with_its_model() {
    let place = folder();
    let model = fixture("genai-llama").join("model.onnx");
    let outs = ["once.onnx", "again.onnx"].map(|name| place.path().join(name));
    for out in &outs {
        let ran = with(&[&"rewrite", &model, &"-o", out, &"--no-validate"]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let ran = with(&[&"validate", &outs[0], &outs[1]]);
    assert_eq!(ran.code, 0, "{ran:?}");
}
