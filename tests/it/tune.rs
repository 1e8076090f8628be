//! Training on text: what the trainer computes, what the commands write, and what they refuse.

#[path = "tune/forward.rs"]
mod forward;
#[path = "tune/refused.rs"]
mod refused;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

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

/// Mean KL of the next-token distribution from the original's in ONNX Runtime, on the text that was trained on: random
/// tokens have nothing in common that would carry over to others.
fn divergence(original: &Path, rewritten: &Path) -> f64 {
    let mut validate = command();
    validate.arg("validate").arg(original).arg(rewritten);
    validate
        .arg("--token-ids")
        .arg(ids())
        .args(["--text-length", "32", "--json"]);
    let ran: Ran = validate.output().unwrap().into();
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.json()["quality"]["mean_kl"].as_f64().unwrap()
}

fn held_out(report: &Value) -> (f64, f64) {
    let tuned = &report["tuned"];
    let first = tuned["checks"][0]["loss"].as_f64().unwrap();
    (first, tuned["best"]["loss"].as_f64().unwrap())
}

#[test]
fn distilling_brings_a_smaller_cache_nearer_to_the_original() {
    let place = folder();
    for (name, form) in [
        ("optimum-llama", "absorbed"),
        ("optimum-llama", "expanded"),
        ("dynamo18-qwen3", "absorbed"),
        ("dynamo18-llama-fp16", "absorbed"),
        ("genai-llama-int4", "absorbed"),
    ] {
        let original = fixture(name);
        let model = half(name, place.path(), &["--form", form]);
        let out = place.path().join("tuned.onnx");
        let teacher = original.display().to_string();
        // The positions that the divergence is measured at.
        let context = ["--context", "64"];
        let asked = ["--teacher", &teacher, "--steps", "60", "--rate", "0.01"];
        let ran = tune(&model, &out, &[&asked[..], &context[..]].concat());
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let (first, best) = held_out(&ran.json());
        assert!(best < first, "{name}, {form}: held-out {first} to {best}");
        let before = divergence(&original, &model);
        let after = divergence(&original, &out);
        assert!(
            after < 0.95 * before,
            "{name}, {form}: in ONNX Runtime {before} to {after}"
        );
    }
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

/// Sums with a small vocabulary of words, as lines of prompt and answer.
fn sums(place: &Path, count: usize) -> PathBuf {
    let file = place.join("sums.jsonl");
    let line = |n: usize| {
        let (a, b) = (n % 7, n % 5);
        let row = serde_json::json!({"prompt": format!("{a} plus {b} is"), "answer": format!(" {}", a + b)});
        format!("{row}\n")
    };
    fs::write(&file, (0..count).map(line).collect::<String>()).unwrap();
    file
}

/// `tune` on `examples`, for the model `name` with the tokenizer of its folder.
fn tune_on(examples: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut tune = command();
    tune.arg("tune")
        .arg(fixture("genai-qwen2").join("model.onnx"));
    tune.arg("--examples").arg(examples).arg("-o").arg(out);
    tune.args(["--objective", "next-token", "--train", "kv", "--json"]);
    tune.args(more).output().unwrap().into()
}

#[test]
fn examples_teach_answers_and_the_report_shows_the_curves_of_two_runs() {
    let place = folder();
    let (file, out) = (sums(place.path(), 60), place.path().join("tuned.onnx"));
    let at = |name: &str| place.path().join(name).display().to_string();
    let options = ["--steps", "30", "--rate", "0.05", "--batch", "4"];
    let ran = tune_on(
        &file,
        &out,
        &[&options[..], &["--report", &at("one.json")]].concat(),
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let (first, best) = held_out(&ran.json());
    assert!(best < first, "held-out {first} to {best}");
    assert!(ran.json()["tuned"]["best"]["right"].is_number(), "{ran:?}");
    assert_eq!(ran.json()["sequences"], 40);

    let page = [
        "--steps",
        "2",
        "--report",
        &at("two.html"),
        "--beside",
        &at("one.json"),
    ];
    let ran = tune_on(&file, &out, &page);
    assert_eq!(ran.code, 0, "{ran:?}");
    let page = fs::read_to_string(at("two.html")).unwrap();
    assert!(page.contains("one.json") && page.matches("<svg").count() == 3);
    // A page of its own is replaced, a foreign file is not.
    assert_eq!(
        tune_on(&file, &out, &["--steps", "1", "--report", &at("two.html")]).code,
        0
    );
    fs::write(at("notes.json"), "{}").unwrap();
    let ran = tune_on(
        &file,
        &out,
        &["--steps", "1", "--report", &at("notes.json")],
    );
    assert_eq!(ran.code, 2, "{ran:?}");
}

#[test]
fn examples_that_cannot_be_read_are_told_by_their_line() {
    let place = folder();
    let file = place.path().join("rows.jsonl");
    let out = place.path().join("tuned.onnx");
    for (rows, told) in [
        (
            "{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"a\"}\n",
            "line 2",
        ),
        ("[1, 2]\n", "line 1"),
        ("{\"prompt\": \"a\", \"answer\": \"\"}\n", "line 1"),
        ("\n", "no examples"),
        ("{\"prompt\": \"a\", \"answer\": \"b\"}\n", "at least 3"),
    ] {
        fs::write(&file, rows).unwrap();
        let ran = tune_on(&file, &out, &[]);
        assert_eq!(ran.code, 1, "{rows}: {ran:?}");
        assert!(ran.stderr.contains(told), "{rows}: {ran:?}");
        assert!(!out.exists());
    }
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
            &["--distill", "4", "--rank", "8", "--new-tokens", "prompt"][..],
            "latent",
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

#[test]
fn integers_are_trained_through_their_rounding() {
    let place = folder();
    let original = fixture("optimum-llama");
    let model = place.path().join("integers.onnx");
    let mut rewrite = command();
    rewrite.arg("rewrite").arg(&original).arg("-o").arg(&model);
    rewrite
        .arg("--token-ids")
        .arg(ids())
        .args(["--length", "32", "--force"]);
    rewrite.args([
        "--cache-ratio",
        "50%",
        "--cache-bits",
        "8",
        "--factors",
        "plain",
    ]);
    let ran = Ran::from(
        rewrite
            .args(["--context", "64", "--no-validate"])
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let out = place.path().join("tuned.onnx");
    let teacher = original.display().to_string();
    let options = [
        "--teacher",
        &teacher,
        "--steps",
        "40",
        "--rate",
        "0.01",
        "--context",
        "64",
    ];
    let ran = tune(&model, &out, &options);
    assert_eq!(ran.code, 0, "{ran:?}");
    let (before, after) = (divergence(&original, &model), divergence(&original, &out));
    assert!(after < 0.95 * before, "in ONNX Runtime {before} to {after}");
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
