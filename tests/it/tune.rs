//! Training on text: what the trainer computes, what the commands write, and what they refuse.

#[path = "tune/branches.rs"]
mod branches;
#[path = "tune/distillation.rs"]
mod distillation;
#[path = "tune/examples.rs"]
mod examples;
#[path = "tune/forward.rs"]
mod forward;
#[path = "tune/refused.rs"]
mod refused;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::{Ran, command, fixture, folder, model_at, root, run};

/// Random token ids of 0 to 127, which every fixture knows.
fn ids() -> PathBuf {
    root().join("fixtures/tokens.json")
}

/// Rewrites a fixture at half the cache, with factors that a text would make better.
fn half(name: &str, place: &Path, more: &[&str]) -> PathBuf {
    let out = place.join(format!("{name}.onnx"));
    let mut arguments = vec![
        "rewrite",
        "--cache-ratio",
        "0.5",
        "--factors",
        "weights",
        "-o",
    ];
    let (shown, original) = (
        out.display().to_string(),
        fixture(name).display().to_string(),
    );
    arguments.extend([shown.as_str(), &original, "--no-validate"]);
    arguments.extend(more);
    let ran = run(&arguments);
    assert_eq!(ran.code, 0, "{name}: {ran:?}");
    out
}

/// `tune` in short sequences, which gives the report as JSON.
fn tune(model: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut tune = command();
    tune.arg("tune")
        .arg(model)
        .arg("--token-ids")
        .arg(ids())
        .arg("-o")
        .arg(out);
    tune.args(["--length", "32", "--json"]).args(more);
    tune.output().unwrap().into()
}

fn held_out(report: &Value) -> (f64, f64) {
    let tuned = &report["tuned"];
    let first = tuned["checks"][0]["loss"].as_f64().unwrap();
    (first, tuned["best"]["loss"].as_f64().unwrap())
}

#[test]
fn only_the_factors_change_and_in_their_own_type() {
    let place = folder();
    let name = "dynamo18-llama-fp16";
    let model = half(name, place.path(), &[]);
    let out = place.path().join("tuned.onnx");
    let teacher = fixture(name).display().to_string();
    let ran = tune(&model, &out, &["--teacher", &teacher, "--steps", "10"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let (before, after) = (model_at(&model), model_at(&out));
    let (mut graph, trained) = (
        before.model.proto.graph.clone().unwrap(),
        after.model.proto.graph.clone().unwrap(),
    );
    let mut changed = 0;
    for (old, new) in graph.initializer.iter_mut().zip(&trained.initializer) {
        assert_eq!((old.name(), old.data_type()), (new.name(), new.data_type()));
        let (bytes, new_bytes) = (
            before.model.tensor_bytes(old).unwrap(),
            after.model.tensor_bytes(new).unwrap(),
        );
        if old.name().contains("/mla/w_") {
            changed += usize::from(bytes != new_bytes);
        } else {
            assert_eq!(bytes, new_bytes, "{}", old.name());
        }
        *old = new.clone();
    }
    assert_eq!(changed, 8, "four factors in each of two layers");
    assert!(graph == trained, "more than initializers changed");
}

#[test]
fn a_stopped_run_goes_on_to_the_same_result() {
    let place = folder();
    let name = "optimum-llama";
    let model = half(name, place.path(), &[]);
    let teacher = fixture(name).display().to_string();
    let options = [
        "--teacher",
        &teacher,
        "--steps",
        "20",
        "--batch",
        "2",
        "--seed",
        "3",
    ];
    let (whole, stopped) = (
        place.path().join("whole.onnx"),
        place.path().join("stopped.onnx"),
    );
    let ran = tune(&model, &whole, &options);
    assert_eq!(ran.code, 0, "{ran:?}");

    // Killed as soon as there is a checkpoint.
    let mut killed = command();
    killed
        .arg("tune")
        .arg(&model)
        .arg("--token-ids")
        .arg(ids())
        .arg("-o")
        .arg(&stopped);
    let mut child = killed
        .args(["--length", "32"])
        .args(options)
        .spawn()
        .unwrap();
    let checkpoint = place.path().join("stopped.onnx.partial");
    while !checkpoint.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        checkpoint.exists() && !stopped.exists(),
        "it was not stopped in the middle"
    );
    let ran = tune(&model, &stopped, &options);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!checkpoint.exists());
    let resumed_at = ran.json()["tuned"]["resumed_at"].as_u64();
    assert!(resumed_at.is_some_and(|steps| steps > 0), "{ran:?}");
    assert_eq!(fs::read(&whole).unwrap(), fs::read(&stopped).unwrap());
}

#[test]
fn fine_tuning_lowers_the_loss_of_the_next_token_with_and_without_a_rewrite() {
    let place = folder();
    let name = "optimum-qwen2";
    let out = place.path().join("tuned.onnx");
    let options = [
        "--objective",
        "next-token",
        "--train",
        "kv",
        "--steps",
        "30",
        "--rate",
        "0.02",
    ];
    for model in [half(name, place.path(), &[]), fixture(name)] {
        let ran = tune(&model, &out, &options);
        assert_eq!(ran.code, 0, "{ran:?}");
        let report = ran.json();
        let losses = report["tuned"]["losses"].as_array().unwrap();
        let mean = |part: &[Value]| {
            part.iter().map(|l| l.as_f64().unwrap()).sum::<f64>() / part.len() as f64
        };
        let (early, late) = (mean(&losses[..5]), mean(&losses[losses.len() - 5..]));
        assert!(late < early, "{}: {early} to {late}", model.display());
    }
}

#[test]
fn keys_and_values_of_an_original_are_its_projections() {
    let place = folder();
    let out = place.path().join("tuned.onnx");
    let options = ["--objective", "next-token", "--train", "kv", "--steps", "2"];
    let ran = tune(&fixture("optimum-qwen2"), &out, &options);
    // W_K and W_V with their biases, in two layers.
    assert_eq!(ran.json()["tuned"]["tensors"], 8, "{ran:?}");

    // At full rank no w_dk and w_dv is in front of them; w_uk and w_uv of each layer are trained with them.
    let latent = place.path().join("latent.onnx");
    let mut rewrite = command();
    rewrite
        .arg("rewrite")
        .arg(fixture("optimum-qwen2"))
        .arg("-o")
        .arg(&latent);
    assert!(
        rewrite
            .args(["--per-head", "--no-validate"])
            .status()
            .unwrap()
            .success()
    );
    let ran = tune(&latent, &out, &options);
    assert_eq!(ran.json()["tuned"]["tensors"], 12, "{ran:?}");

    // Integers are rounded between the projections and the cache. Each layer has a correction of its outputs as well.
    let name = "optimum-qwen2";
    let rounded = distillation::of_integers(name, place.path(), &["--cache-bits", "8"]);
    let ran = tune(&rounded, &out, &options);
    assert_eq!(ran.json()["tuned"]["tensors"], 14, "{ran:?}");
}

/// The seven products of each of two layers, and not those of embeddings and logits, nor the zeros and ones that select heads at
/// full rank; quantized weights stay as they are.
#[test]
fn the_weights_of_all_layers_are_trained_beside_the_factors() {
    let place = folder();
    let out = place.path().join("tuned.onnx");
    let exact = place.path().join("exact.onnx");
    let ran = run([
        "rewrite",
        &fixture("dynamo18-llama").display().to_string(),
        "-o",
        &exact.display().to_string(),
        "--no-validate",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let tuned = |model: &Path, train: &str| {
        let options = [
            "--objective",
            "next-token",
            "--train",
            train,
            "--steps",
            "1",
        ];
        let ran = tune(model, &out, &options);
        assert_eq!(ran.code, 0, "{}: {ran:?}", model.display());
        ran.json()["tuned"].clone()
    };
    let tensors = |model: &Path, train: &str| tuned(model, train)["tensors"].as_u64().unwrap();
    for model in [fixture("optimum-llama"), fixture("dynamo18-smollm3"), exact] {
        assert_eq!(tensors(&model, "layers"), 14, "{}", model.display());
    }
    let own = half("optimum-llama", place.path(), &[]);
    assert_eq!(tensors(&own, "layers"), tensors(&own, "factors") + 14);
    let frozen = half("genai-llama-int4", place.path(), &[]);
    assert_eq!(tensors(&frozen, "layers"), tensors(&frozen, "factors"));
    // That these are less than what was asked for is told.
    let alone = |model: &Path, train: &str| tuned(model, train)["factors_alone"].clone();
    assert_eq!(alone(&frozen, "layers"), json!(true));
    assert_eq!(alone(&frozen, "factors"), json!(false));
    assert_eq!(alone(&own, "layers"), json!(false));
}

#[test]
fn factors_go_out_and_come_back() {
    let place = folder();
    let model = half("dynamo18-llama-fp16", place.path(), &[]);
    let (file, out) = (
        place.path().join("factors.safetensors"),
        place.path().join("again.onnx"),
    );
    let shown = |path: &Path| path.display().to_string();
    let ran = run(["factors", "export", &shown(&model), "-o", &shown(&file)]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = run([
        "factors",
        "import",
        &shown(&model),
        &shown(&file),
        "-o",
        &shown(&out),
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fs::read(&model).unwrap(), fs::read(&out).unwrap());

    let ran = run([
        "factors",
        "export",
        &shown(&fixture("optimum-llama")),
        "-o",
        &shown(&file),
    ]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("no factors of a rewrite"), "{ran:?}");
}
