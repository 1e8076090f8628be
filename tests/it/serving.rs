//! Rewritten folders in the stacks that people serve models with.
//!
//! The stacks are installed by `make test`: onnxruntime-genai, Optimum and Triton's messages into .venv/serving,
//! transformers.js into tests/js/node_modules.

#[path = "serving/config_json.rs"]
pub mod config_json;
#[path = "serving/genai.rs"]
pub mod genai;
#[path = "serving/triton.rs"]
mod triton;
#[path = "serving/whisper.rs"]
pub mod whisper;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::common::{Ran, alone, fixture, folder, loaded, real_model, root, run};
use gqa2mla::validate::interface::Input;
use gqa2mla::validate::port::AxisSize;
use gqa2mla::validate::ports::LanguageModel;
use serde_json::{Value, json};

/// Prompts for the models of the fixtures, and for the real one ("The capital of France is").
const SMALL: &str = "[[[5, 7, 28, 44, 31]], [[5, 7, 28, 44, 31], [9, 12, 17, 4, 1]]]";
const SMALL_PADDED: &str = "[[[5, 7, 28, 44, 31]], [[5, 7, 28, 44, 31], [9, 12, 17]]]";
const REAL: &str =
    "[[[504, 3575, 282, 4649, 314]], [[504, 3575, 282, 4649, 314], [504, 3575, 282, 260, 9]]]";
const REAL_PADDED: &str =
    "[[[504, 3575, 282, 4649, 314]], [[504, 3575, 282, 4649, 314], [504, 3575, 282]]]";

/// Rewrites a folder; gives the report.
fn rewritten(from: &Path, to: &Path, more: &[&str]) -> Value {
    let ran = rewrite(from, to, more);
    assert_eq!(ran.code, 0, "{}: {ran:?}", from.display());
    ran.json()
}

fn rewrite(from: &Path, to: &Path, more: &[&str]) -> Ran {
    let mut arguments = vec![PathBuf::from("rewrite"), from.to_path_buf()];
    arguments.extend(["--json", "--no-validate", "-o"].map(PathBuf::from));
    arguments.push(to.to_path_buf());
    arguments.extend(more.iter().map(PathBuf::from));
    run(arguments)
}

/// What a script of a stack prints, as JSON.
fn told(program: &Path, script: &str, arguments: &[&dyn AsRef<Path>]) -> Value {
    let ran = asked(program, script, arguments);
    assert!(
        ran.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    let text = String::from_utf8(ran.stdout).unwrap();
    // Libraries print warnings on the way; the last line is the answer.
    serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap()
}

fn asked(program: &Path, script: &str, arguments: &[&dyn AsRef<Path>]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(root()).arg(script);
    command.args(arguments.iter().map(|a| a.as_ref()));
    let output = command.output();
    output.unwrap_or_else(|e| panic!("{}: {e}: run `make test`", program.display()))
}

fn serving_python() -> PathBuf {
    root().join(".venv/serving/bin/python")
}

fn in_genai(model: &Path, count: &str, prompts: &str) -> Value {
    told(
        &serving_python(),
        "tests/python/genai.py",
        &[&model, &count, &prompts],
    )
}

fn in_optimum(model: &Path, count: &str, prompts: &str) -> Value {
    told(
        &serving_python(),
        "tests/python/optimum_generate.py",
        &[&model, &count, &prompts],
    )
}

fn in_transformers_js(model: &Path, count: &str, prompts: &str, name: &str) -> Value {
    let script = "tests/js/generate.mjs";
    told(
        Path::new("node"),
        script,
        &[&model, &count, &prompts, &name],
    )
}

/// The tokens that the Python example makes of each prompt, without the prompt.
fn in_onnx_runtime(model: &Path, count: &str, prompts: &[&str]) -> Value {
    let mut arguments: Vec<&dyn AsRef<Path>> = vec![&model];
    for prompt in prompts {
        arguments.extend([&"--ids" as &dyn AsRef<Path>, prompt]);
    }
    arguments.extend([&"--tokens" as &dyn AsRef<Path>, &count]);
    told(
        &root().join(".venv/bin/python"),
        "examples/generate.py",
        &arguments,
    )
}

/// The keys that a rewrite has edited.
fn edited(report: &Value) -> Vec<String> {
    let edits = report["folder"]["edits"].as_array().unwrap().iter();
    let one = |e: &Value| {
        format!(
            "{} {} -> {}",
            e["key"].as_str().unwrap(),
            e["old"],
            e["new"]
        )
    };
    edits.map(one).map(|text| text.replace('"', "")).collect()
}

fn cache_bytes(results: &Value) -> Vec<f64> {
    let flat = |v: &Value| v.as_array().unwrap().clone();
    let batches = match &results[0] {
        Value::Array(_) => flat(results).iter().flat_map(flat).collect(),
        _ => flat(results),
    };
    batches
        .iter()
        .map(|b| b["cache_bytes"].as_f64().unwrap())
        .collect()
}

#[test]
#[ignore = "needs the serving stacks"]
fn half_a_cache_is_half_a_cache_in_the_running_stack() {
    let place = folder();
    let half = ["--cache-ratio", "0.5", "--factors", "weights"];
    let genai = fixture("genai-llama");
    for target in ["matmul", "gqa"] {
        let out = place.path().join(target);
        rewritten(&genai, &out, &[&half[..], &["--target", target]].concat());
        let halves: Vec<f64> = cache_bytes(&in_genai(&genai, "6", SMALL))
            .iter()
            .map(|b| b / 2.0)
            .collect();
        assert_eq!(cache_bytes(&in_genai(&out, "6", SMALL)), halves, "{target}");
    }
    let (optimum, out) = (fixture("optimum-qwen2"), place.path().join("optimum"));
    rewritten(&optimum, &out, &half);
    let halves: Vec<f64> = cache_bytes(&in_optimum(&optimum, "6", SMALL))
        .iter()
        .map(|b| b / 2.0)
        .collect();
    assert_eq!(cache_bytes(&in_optimum(&out, "6", SMALL)), halves);
}

#[test]
#[ignore = "needs the serving stacks"]
fn integers_take_their_bits_a_number_in_the_running_stack() {
    let place = folder();
    let ids = root().join("fixtures/tokens.json").display().to_string();
    let of_bits = |bits| {
        let mut integers = vec!["--cache-bits", bits, "--token-ids", &ids, "--force"];
        integers.extend(["--length", "64", "--context", "64"]);
        integers
    };
    let smaller = |results: Value, bits: f64| -> Vec<f64> {
        let bytes = cache_bytes(&results);
        bytes.iter().map(|b| b * bits / 32.0).collect()
    };
    let genai = fixture("genai-llama");
    let gqa = ["--target", "gqa"];
    let ways: [(&str, &[&str]); 7] = [
        ("8", &["--target", "matmul"]),
        ("8", &gqa),
        ("8", &["--keep-heads"]),
        ("6", &gqa),
        ("6", &["--keep-heads"]),
        ("4", &gqa),
        ("4", &["--keep-heads"]),
    ];
    for (number, (bits, way)) in ways.into_iter().enumerate() {
        let out = place.path().join(format!("genai-{number}"));
        rewritten(&genai, &out, &[&of_bits(bits)[..], way].concat());
        let expected = smaller(in_genai(&genai, "6", SMALL), bits.parse().unwrap());
        let held = cache_bytes(&in_genai(&out, "6", SMALL));
        assert_eq!(held, expected, "{bits} {way:?}");
    }
    let integers = of_bits("8");
    let quarter = |results: Value| smaller(results, 8.0);
    let (optimum, out) = (fixture("optimum-qwen2"), place.path().join("optimum"));
    rewritten(&optimum, &out, &integers);
    let expected = quarter(in_optimum(&optimum, "6", SMALL));
    assert_eq!(cache_bytes(&in_optimum(&out, "6", SMALL)), expected);
    let web = place.path().join("web");
    fs::create_dir_all(web.join("onnx")).unwrap();
    for file in fs::read_dir(fixture("optimum-llama")).unwrap() {
        let path = file.unwrap().path();
        let inner = if path.extension().is_some_and(|e| e == "onnx") {
            "onnx"
        } else {
            ""
        };
        fs::copy(&path, web.join(inner).join(path.file_name().unwrap())).unwrap();
    }
    let out = place.path().join("web-out");
    rewritten(&web, &out, &integers);
    let expected = quarter(in_transformers_js(&web, "6", SMALL_PADDED, "model"));
    assert_eq!(
        cache_bytes(&in_transformers_js(&out, "6", SMALL_PADDED, "model")),
        expected
    );
}

#[test]
#[ignore = "needs the serving stacks"]
fn the_operator_in_place_of_products_gives_the_same_text() {
    let place = folder();
    let (optimum, out) = (fixture("optimum-qwen2"), place.path().join("optimum"));
    rewritten(&optimum, &out, &["--keep-heads"]);
    let before = in_optimum(&optimum, "6", SMALL);
    assert_eq!(in_optimum(&out, "6", SMALL), before);
}

#[test]
fn the_examples_generate_the_same_before_and_after() {
    let place = folder();
    let (original, out) = (fixture("optimum-llama"), place.path().join("out"));
    rewritten(&original, &out, &[]);
    let models = [&original, &out].map(|f| f.join("model.onnx"));
    let in_python = models
        .each_ref()
        .map(|m| in_onnx_runtime(m, "8", &["5,7,28,44,31"]));
    assert_eq!(in_python[0], in_python[1]);
    let capi = fs::read_dir(root().join(".venv/lib"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let capi = capi.join("site-packages/onnxruntime/capi");
    let libraries = fs::read_dir(capi).unwrap().map(|f| f.unwrap().path());
    let library = libraries
        .into_iter()
        .find(|f| f.to_string_lossy().contains("libonnxruntime.so"))
        .unwrap();
    // Cargo builds the examples with the tests, beside this program's folder.
    let program = std::env::current_exe().unwrap();
    let program = program
        .parent()
        .unwrap()
        .with_file_name("examples")
        .join("generate");
    for model in &models {
        let output = Command::new(&program)
            .args([
                &library,
                model,
                &PathBuf::from("5,7,28,44,31"),
                &PathBuf::from("8"),
            ])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let made = format!("[[{}]]", String::from_utf8(output.stdout).unwrap().trim());
        let made: Value = serde_json::from_str(&made).unwrap();
        assert_eq!(made, in_python[0]);
    }
}
