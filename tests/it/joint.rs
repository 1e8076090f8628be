//! One latent of keys and values: what it gains where both are maps of one hidden state, with integers and in place, and where
//! it is refused.

use std::path::Path;

use serde_json::Value;

use crate::common::{
    SINGLE, compared, fixture, folder, in_ort, loaded, model_at, rewritten, root, with,
};
use gqa2mla_passes::{Form, Joint, RewriteOptions};

/// Rewrites the fixture `name` to `out` with factors from the tokens of the fixtures.
fn calibrated(name: &str, out: &Path, more: &[&str]) -> Value {
    let ids = root().join("fixtures/tokens.json");
    let model = fixture(name);
    let mut arguments: Vec<&dyn AsRef<Path>> = vec![&"rewrite", &model, &"-o", &out, &"--json"];
    let text: [&dyn AsRef<Path>; 8] = [
        &"--token-ids",
        &ids,
        &"--length",
        &"64",
        &"--context",
        &"64",
        &"--reconstruct",
        &"0",
    ];
    arguments.extend(text);
    arguments.extend([&"--force" as &dyn AsRef<Path>, &"--form"]);
    arguments.extend(more.iter().map(|word| word as &dyn AsRef<Path>));
    let ran = with(&arguments);
    assert_eq!(ran.code, 0, "{name} {more:?}: {ran:?}");
    ran.json()
}

/// The largest difference of the logits, relative to the largest logit, that the report has.
fn difference(report: &Value) -> f64 {
    let steps = report["validation"]["proof"]["steps"].as_array().unwrap();
    let ratios = steps.iter().map(|step| step["ratio"].as_f64().unwrap());
    ratios.fold(0.0, f64::max)
}

/// Keys and values of these fixtures have 64 channels and are maps of 40 hidden numbers, so that 40 of 64 numbers hold all.
/// What is left comes of channels that hardly vary on the text, which are kept with a limited precision.
#[test]
fn a_latent_as_wide_as_the_hidden_state_loses_nothing_where_two_latents_do() {
    let place = folder();
    for name in ["optimum-llama", "dynamo23-llama", "genai-llama"] {
        let out = place.path().join(format!("{name}.onnx"));
        let of =
            |form: &str| difference(&calibrated(name, &out, &[form, "--cache-ratio", "62.5%"]));
        let (one, two) = (of("joint"), of("expanded"));
        assert!(
            one < 1e-4 && two > 100.0 * one,
            "{name}: {one:e} and {two:e}"
        );
    }
}

#[test]
fn a_latent_of_integers_is_near_the_same_latent_and_takes_a_byte_a_number() {
    let place = folder();
    for (name, form) in [
        ("optimum-llama", "joint"),
        ("genai-phi3", "joint"),
        ("dynamo18-llama-fp16", "joint"),
        ("optimum-llama", "expanded"),
        ("genai-phi3", "expanded"),
    ] {
        let [wide, narrow] = ["wide", "narrow"].map(|n| place.path().join(format!("{n}.onnx")));
        let half = [form, "--cache-ratio", "50%"];
        calibrated(name, &wide, &half);
        let report = calibrated(name, &narrow, &[&half[..], &["--cache-bits", "8"]].concat());
        let proof = &report["validation"]["proof"];
        let bytes = |key: &str| proof[key].as_f64().unwrap();
        let width = if name.contains("fp16") { 2.0 } else { 4.0 };
        assert_eq!(
            bytes("rewritten_cache_bytes"),
            bytes("original_cache_bytes") / width / 2.0,
            "{name}"
        );
        // 127 steps are a few thousandths of the range of a channel.
        let found = compared(&model_at(&wide), &model_at(&narrow), in_ort(0.1)).unwrap();
        assert!(found.passed(), "{name}, {form}: {:e}", found.max_ratio());
        assert!(
            found.max_ratio() > 1e-5,
            "{name}, {form}: nothing was rounded"
        );
    }
}

#[test]
fn rows_of_both_are_written_in_place_as_well() {
    for name in ["optimum-llama", "dynamo23-llama", "genai-phi3"] {
        let before = loaded(name);
        let mut after = loaded(name);
        let options = RewriteOptions {
            form: &Joint,
            join: gqa2mla_passes::forms::Join::InPlace,
            ..RewriteOptions::default()
        };
        rewritten(&mut after, options).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found =
            compared(&before, &after, in_ort(SINGLE)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(found.passed(), "{name}: {:e}", found.max_ratio());
    }
}

/// Half of the cache in the form joint, refused as wrong usage; what standard error says.
fn refused(name: &str, more: &[&str]) -> String {
    let (place, ids) = (folder(), root().join("fixtures/tokens.json"));
    let (model, out) = (fixture(name), place.path().join("out.onnx"));
    let mut arguments: Vec<&dyn AsRef<Path>> = vec![&"rewrite", &model, &"-o", &out];
    arguments.extend(
        ["--cache-ratio", "50%", "--form", "joint"]
            .iter()
            .map(|w| w as &dyn AsRef<Path>),
    );
    arguments.extend([&"--token-ids" as &dyn AsRef<Path>, &ids]);
    arguments.extend(more.iter().map(|word| word as &dyn AsRef<Path>));
    let ran = with(&arguments);
    assert_eq!(ran.code, 2, "{name}: {ran:?}");
    ran.stderr
}

#[test]
fn it_has_no_reconstruction() {
    let told = refused("optimum-llama", &["--reconstruct", "9"]);
    assert!(told.contains("leave it out with --form joint"), "{told}");
}

#[test]
fn keys_in_a_branch_are_refused_before_a_text_is_read() {
    let told = refused("merged-llama", &[]);
    assert!(
        told.contains("without merging; use the form absorbed"),
        "{told}"
    );
    assert!(!told.contains("reading text"), "{told}");
}

#[test]
fn a_model_without_a_cache_is_refused_with_the_way_out() {
    let options = RewriteOptions {
        form: &Joint as &dyn Form,
        ..RewriteOptions::default()
    };
    let told = rewritten(&mut loaded("dynamo18-llama-nocache"), options).unwrap_err();
    let told = told.to_string();
    assert!(
        told.contains("no cache") && told.contains("use the form absorbed"),
        "{told}"
    );
}
