//! Distillation from the original: what it gains in ONNX Runtime, through integers, and as a part of a rewrite.

use std::fs;
use std::path::{Path, PathBuf};

use super::{half, held_out, ids, tune};
use crate::common::{Ran, command, fixture, folder};

/// Mean KL of the next-token distribution from the original's in ONNX Runtime, on the text that was trained on: random
/// tokens have nothing in common that would carry over to others.
fn divergence(original: &Path, rewritten: &Path) -> f64 {
    let mut validate = command();
    validate.arg("validate").arg(original).arg(rewritten);
    validate
        .arg("--token-ids")
        .arg(ids())
        .args(["--length", "32", "--json"]);
    let ran: Ran = validate.output().unwrap().into();
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.json()["quality"]["mean_kl"].as_f64().unwrap()
}

#[test]
fn distilling_brings_a_smaller_cache_nearer_to_the_original() {
    let place = folder();
    for (name, form, new_tokens) in [
        ("optimum-llama", "absorbed", "latent"),
        ("optimum-llama", "absorbed", "prompt"),
        ("optimum-llama", "expanded", "latent"),
        ("optimum-llama", "joint", "latent"),
        ("dynamo18-qwen3", "absorbed", "latent"),
        ("dynamo18-llama-fp16", "absorbed", "latent"),
        ("genai-llama-int4", "absorbed", "latent"),
    ] {
        let original = fixture(name);
        let options = ["--form", form, "--new-tokens", new_tokens];
        let model = half(name, place.path(), &options);
        let out = place.path().join("tuned.onnx");
        let teacher = original.display().to_string();
        // The positions that the divergence is measured at.
        let context = ["--context", "64"];
        let asked = ["--teacher", &teacher, "--steps", "60", "--rate", "0.01"];
        let ran = tune(&model, &out, &[&asked[..], &context[..]].concat());
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let (first, best) = held_out(&ran.json());
        assert!(best < first, "{name}, {form}: held-out {first} to {best}");
        // Rebuilt keys are rotated to positions from 0, so that sequences must stand there.
        let placed = ran.json()["tuned"]["positions"] != 0;
        let moves = form == "absorbed" && !name.starts_with("genai");
        assert_eq!(placed, moves, "{name}, {form}");
        let before = divergence(&original, &model);
        let after = divergence(&original, &out);
        assert!(
            after < 0.95 * before,
            "{name}, {form}: in ONNX Runtime {before} to {after}"
        );
    }
}

#[test]
fn the_weights_of_the_layers_bring_it_nearer_than_the_factors_alone() {
    let place = folder();
    let original = fixture("optimum-llama");
    let model = half("optimum-llama", place.path(), &[]);
    let teacher = original.display().to_string();
    let distilled = |train: &str| {
        let out = place.path().join(format!("{train}.onnx"));
        let asked = ["--teacher", &teacher, "--steps", "60", "--rate", "0.01"];
        let more = ["--context", "64", "--train", train];
        let ran = tune(&model, &out, &[&asked[..], &more[..]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        divergence(&original, &out)
    };
    let (factors, layers) = (distilled("factors"), distilled("layers"));
    assert!(layers < factors, "{layers} against {factors}");
}

#[test]
fn one_command_rewrites_distils_and_measures() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let rewrite = |more: &[&str]| {
        let mut rewrite = command();
        rewrite
            .arg("rewrite")
            .arg(fixture("optimum-llama"))
            .arg("-o")
            .arg(&out);
        rewrite
            .arg("--token-ids")
            .arg(ids())
            .args(["--length", "32", "--force"]);
        rewrite.args(["--context", "64", "--reconstruct", "0", "--json"]);
        Ran::from(rewrite.args(more).output().unwrap())
    };
    let half = ["--cache-ratio", "50%", "--factors", "plain"];
    let plain = rewrite(&half).json();
    let ran = rewrite(&[&half[..], &["--distill", "40"]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    let trained = ran.json();
    let told = &trained["distillation"];
    assert!(told["steps"].as_u64() > Some(0), "{told:#}");
    assert!(
        told["kl_after"].as_f64() < told["kl_before"].as_f64(),
        "{told:#}"
    );
    assert!(plain["distillation"].is_null());
    // Nothing but the model and its data is left, and the data is that of the trained model.
    let left = fs::read_dir(place.path()).unwrap().count();
    assert!(left <= 2, "{left} files");
    for (more, told) in [
        (&["--distill", "4"][..], "exact"),
        (
            &["--distill", "4", "--rank", "8", "--new-tokens", "exact"][..],
            "--new-tokens prompt or latent",
        ),
        (
            &["--distill", "4", "--rank", "8", "--cache-io", "inplace"][..],
            "inplace",
        ),
    ] {
        let ran = rewrite(more);
        assert_eq!(ran.code, 2, "{more:?}: {ran:?}");
        assert!(ran.stderr.contains(told), "{more:?}: {ran:?}");
    }
}

/// A rewrite of the fixture `name` with a cache of integers, in `place`.
pub fn of_integers(name: &str, place: &Path, more: &[&str]) -> PathBuf {
    let model = place.join(format!("{name}.integers.onnx"));
    let mut rewrite = command();
    rewrite
        .arg("rewrite")
        .arg(fixture(name).join("model.onnx"))
        .arg("-o")
        .arg(&model);
    rewrite
        .arg("--token-ids")
        .arg(ids())
        .args(["--length", "32", "--force", "--context", "64"]);
    let ran = Ran::from(rewrite.arg("--no-validate").args(more).output().unwrap());
    assert_eq!(ran.code, 0, "{name} {more:?}: {ran:?}");
    model
}

/// Of standard operators, and of GroupQueryAttention: a latent, heads in bases of their own, and second digits; with and
/// without a branch for prompts.
#[test]
fn integers_are_trained_through_their_rounding() {
    let place = folder();
    let half = ["--cache-ratio", "50%", "--factors", "plain"];
    let latent = |bits| [&["--target", "gqa", "--cache-bits", bits][..], &half].concat();
    let heads = ["--cache-bits", "4", "--keep-heads"];
    // With random weights, heads of 4 bits lose nothing but what rounding costs in any basis.
    let cases = [
        (
            "optimum-llama",
            [&["--cache-bits", "8"][..], &half].concat(),
            ("0.01", 0.95),
        ),
        (
            "optimum-llama",
            [&["--cache-bits", "8", "--new-tokens", "prompt"][..], &half].concat(),
            ("0.01", 0.95),
        ),
        ("genai-llama", latent("4"), ("0.01", 0.95)),
        ("genai-qwen3", latent("6"), ("0.01", 0.95)),
        ("optimum-llama", heads.to_vec(), ("0.003", 0.99)),
        (
            "genai-llama",
            [&heads[..], &["--new-tokens", "latent"]].concat(),
            ("0.003", 0.99),
        ),
    ];
    for (name, more, (rate, share)) in cases {
        let original = fixture(name);
        let model = of_integers(name, place.path(), &more);
        let out = place.path().join("tuned.onnx");
        let teacher = original.display().to_string();
        let asked = ["--teacher", &teacher, "--steps", "40", "--rate", rate];
        let ran = tune(&model, &out, &[&asked[..], &["--context", "64"]].concat());
        assert_eq!(ran.code, 0, "{name} {more:?}: {ran:?}");
        let (before, after) = (divergence(&original, &model), divergence(&original, &out));
        assert!(
            after < share * before,
            "{name} {more:?}: in ONNX Runtime {before} to {after}"
        );
    }
}

/// Merged decoders, of which the branch with a past is trained; experts that a router chooses; weights of 8 and 4 bits; masks
/// and rotations that are computed from indices.
#[test]
fn many_kinds_of_decoders_are_distilled() {
    let place = folder();
    let half = ["--cache-ratio", "50%", "--factors", "plain"];
    for name in [
        "merged-llama",
        "int8-llama",
        "qdq_int4-llama",
        "genai-gptoss",
        "dynamo18-gptoss",
        "optimum-qwen3_moe",
        "optimum-cohere",
        "optimum-falcon",
        "optimum-gptj",
        "dynamo18-gemma3n",
        "genai-longrope",
    ] {
        let original = fixture(name);
        let model = of_integers(name, place.path(), &half);
        let out = place.path().join("tuned.onnx");
        let teacher = original.display().to_string();
        let asked = ["--teacher", &teacher, "--steps", "40", "--rate", "0.01"];
        // The positions that the divergence is measured at.
        let ran = tune(&model, &out, &[&asked[..], &["--context", "32"]].concat());
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let (before, after) = (divergence(&original, &model), divergence(&original, &out));
        // Measured: 0.83 to 0.93.
        assert!(
            after < 0.95 * before,
            "{name}: in ONNX Runtime {before} to {after}"
        );
    }
}

#[test]
fn heads_of_8_bits_have_no_factors_to_train() {
    let place = folder();
    let model = fixture("genai-llama").join("model.onnx");
    let ids = ids().display().to_string();
    let asked = ["--distill", "4", "--token-ids", &ids, "--keep-heads"];
    let mut rewrite = command();
    rewrite.arg("rewrite").arg(&model).arg("-o");
    rewrite.arg(place.path().join("out.onnx")).args(asked);
    let ran = Ran::from(rewrite.args(["--cache-bits", "8"]).output().unwrap());
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("or use --cache-bits 6 or 4"), "{ran:?}");
}

#[test]
fn clean_removes_the_state_of_a_distillation() {
    let place = folder();
    // The beginning of a state: its format alone.
    let header = r#"{"__metadata__":{"format":"gqa2mla training 2"}}"#;
    let state = [&header.len().to_le_bytes(), header.as_bytes()].concat();
    let model = fixture("optimum-llama").join("model.onnx");
    let clean = |model: &Path, out: &Path| -> Ran {
        let mut rewrite = command();
        rewrite.arg("rewrite").arg(model).arg("-o").arg(out);
        rewrite.arg("--clean").output().unwrap().into()
    };
    let cases = [
        (&model, "out.onnx", "out.onnx.partial"),
        (&model, "file", "file/model.onnx.partial"),
        (&fixture("optimum-llama"), "folder", "folder.partial"),
    ];
    for (model, out, partial) in cases {
        let (out, partial) = (place.path().join(out), place.path().join(partial));
        fs::create_dir_all(partial.parent().unwrap()).unwrap();
        fs::write(&partial, &state).unwrap();
        let ran = clean(model, &out);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.stdout.contains(".partial"), "{ran:?}");
        assert!(!partial.exists());
        // A file of another origin stays.
        fs::write(&partial, "other").unwrap();
        assert_eq!(clean(model, &out).code, 0);
        assert!(partial.exists());
    }
}
