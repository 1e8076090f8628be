//! Rewritten folders in the stacks that people serve models with.
//!
//! The stacks are installed by `make test`: onnxruntime-genai, Optimum and Triton's messages into .venv/serving,
//! transformers.js into tests/js/node_modules.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Ran, fixture, folder, loaded, real_model, root, run};
use gqa2mla::ports::subject;
use gqa2mla::validate::interface::{Dim, Input};
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
fn genai_generates_the_same_from_every_export_of_its_builder() {
    let place = folder();
    let names = [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "phi3",
        "gemma2",
        "gptoss",
        "llama-int4",
    ];
    for name in names {
        let original = fixture(&format!("genai-{name}"));
        let before = in_genai(&original, "12", SMALL);
        for target in ["matmul", "gqa"] {
            let out = place.path().join(format!("{name}-{target}"));
            let report = rewritten(&original, &out, &["--target", target]);
            assert_eq!(report["folder"]["serving"], json!(["genai"]));
            // Past and present share a buffer only where the operator that writes into it is still there.
            let shared = edited(&report)
                .iter()
                .all(|e| !e.starts_with("search.past_present"));
            assert_eq!(shared, target == "gqa", "{name}: {report:#}");
            assert_eq!(in_genai(&out, "12", SMALL), before, "{name}, {target}");
        }
    }
}

#[test]
fn a_configuration_as_it_was_would_not_do_in_genai() {
    let place = folder();
    let out = place.path().join("out");
    let original = fixture("genai-llama");
    rewritten(&original, &out, &["--serving", "none"]);
    let same = fs::read(out.join("genai_config.json")).unwrap();
    assert_eq!(same, fs::read(original.join("genai_config.json")).unwrap());
    let ran = asked(
        &serving_python(),
        "tests/python/genai.py",
        &[&out, &"4", &SMALL],
    );
    assert!(!ran.status.success(), "the edits change nothing");
}

#[test]
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
fn optimum_generates_the_same_whatever_the_model_type() {
    let place = folder();
    let names = [
        "optimum-llama",
        "optimum14-llama",
        "optimum-mistral",
        "optimum-qwen2",
        "optimum-qwen3",
        "optimum-qwen3_moe",
        "optimum-granite",
        "optimum-phi3",
        "optimum-gemma2",
        "optimum-gemma3",
        "optimum-gpt_neox",
    ];
    for name in names {
        let (original, out) = (fixture(name), place.path().join(name));
        let report = rewritten(&original, &out, &[]);
        assert_eq!(report["folder"]["serving"], json!(["optimum"]), "{name}");
        // Optimum itself cannot feed some of the originals, whose heads are not as wide as it computes: what is expected
        // comes from ONNX Runtime alone.
        let single = in_onnx_runtime(&original.join("model.onnx"), "6", &["5,7,28,44,31"]);
        let pair = in_onnx_runtime(
            &original.join("model.onnx"),
            "6",
            &["5,7,28,44,31", "9,12,17"],
        );
        for (binding, found) in in_optimum(&out, "6", SMALL_PADDED)
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
        {
            let new = |batch: usize| -> Value {
                let rows = found[batch]["tokens"].as_array().unwrap();
                rows.iter()
                    .map(|row| json!(row.as_array().unwrap()[5..]))
                    .collect()
            };
            assert_eq!(
                (new(0), new(1)),
                (single.clone(), pair.clone()),
                "{name}, binding {binding}"
            );
        }
    }
}

/// The files of a fixture as model hubs lay them out.
fn hub_folder(name: &str, place: &Path, model: &str) -> PathBuf {
    let hub = place.join(format!("hub-{name}"));
    fs::create_dir_all(hub.join("onnx")).unwrap();
    fs::copy(
        fixture(name).join("model.onnx"),
        hub.join("onnx").join(model),
    )
    .unwrap();
    let config = fixture("optimum-llama").join("config.json");
    fs::copy(config, hub.join("config.json")).unwrap();
    hub
}

#[test]
fn transformers_js_generates_the_same_from_single_and_merged_decoders() {
    let place = folder();
    for (name, model) in [
        ("optimum-llama", "model"),
        ("merged-llama", "decoder_model_merged"),
    ] {
        let hub = hub_folder(name, place.path(), &format!("{model}.onnx"));
        let out = place.path().join(format!("out-{name}"));
        let report = rewritten(&hub, &out, &[]);
        assert_eq!(report["folder"]["serving"], json!(["transformers-js"]));
        assert_eq!(
            edited(&report)[0],
            "num_key_value_heads 2 -> 1",
            "versions before 4.2 read it"
        );
        // It fetches what it knows of by name: one file stays one file.
        let files: Vec<_> = fs::read_dir(out.join("onnx"))
            .unwrap()
            .map(|f| f.unwrap().file_name())
            .collect();
        assert_eq!(files, [format!("{model}.onnx").as_str()]);
        assert_eq!(
            in_transformers_js(&out, "8", SMALL_PADDED, model),
            in_transformers_js(&hub, "8", SMALL_PADDED, model),
            "{name}"
        );
        let half = place.path().join(format!("half-{name}"));
        rewritten(&hub, &half, &["--rank", "16", "--factors", "weights"]);
        let bytes =
            |folder: &Path| cache_bytes(&in_transformers_js(folder, "8", SMALL_PADDED, model));
        let halves: Vec<f64> = bytes(&hub).iter().map(|b| b / 2.0).collect();
        assert_eq!(bytes(&half), halves);
    }
}

/// A configuration that names every input and output of a model, written in the ways that protobuf's text format has.
fn triton_config(inputs: &[Input], logits: &str) -> String {
    let dims = |dims: &[Dim]| -> Vec<String> {
        let one = |dim: &Dim| match dim {
            Dim::Fixed(n) => n.to_string(),
            _ => "-1".to_owned(),
        };
        dims.iter().skip(1).map(one).collect()
    };
    let mut text =
        "name: \"llama\" # served as it is\nbackend: \"onnxruntime\"\nmax_batch_size: 8\ninput [\n"
            .to_owned();
    let (caches, plain): (Vec<_>, Vec<_>) = inputs.iter().partition(|i| i.name.starts_with("past"));
    let plain: Vec<String> = plain
        .iter()
        .map(|input| {
            let dims = dims(&input.dims).join(", ");
            format!(
                "  {{ name: \"{}\", data_type: TYPE_INT64, dims: [ {dims} ] }}",
                input.name
            )
        })
        .collect();
    text.push_str(&format!("{}\n]\n", plain.join(",\n")));
    for cache in &caches {
        let dims: Vec<String> = dims(&cache.dims)
            .iter()
            .map(|d| format!("dims: {d}"))
            .collect();
        let dims = dims.join(" ");
        text.push_str(&format!(
            "input {{ name: '{}' data_type: TYPE_FP32 {dims} }}\n",
            cache.name
        ));
    }
    text.push_str(&format!(
        "output [ {{ name: \"{logits}\" data_type: TYPE_FP32 dims: [ -1, 128 ] }} ]\n"
    ));
    text.push_str("sequence_batching {\n  state [\n");
    let states: Vec<String> = caches
        .iter()
        .map(|cache| {
            let (name, dims) = (&cache.name, dims(&cache.dims));
            let (present, list) = (name.replace("past_key_values", "present"), dims.join(", "));
            let empty = list.replace("-1", "0");
            format!(
                "    {{ input_name: \"{name}\" output_name: \"{present}\" data_type: TYPE_FP32 dims: [ {list} ]\n      initial_state: {{ name: \"empty\" data_type: TYPE_FP32 dims: [ {empty} ] zero_data: true }} }}"
            )
        })
        .collect();
    text.push_str(&states.join(",\n"));
    text.push_str("\n  ]\n}\n");
    text
}

#[test]
fn in_a_triton_configuration_the_dims_of_caches_change_and_nothing_else() {
    let place = folder();
    let repository = place.path().join("llama");
    fs::create_dir_all(repository.join("1")).unwrap();
    fs::copy(
        fixture("optimum-llama").join("model.onnx"),
        repository.join("1/model.onnx"),
    )
    .unwrap();
    let interface = subject(&loaded("optimum-llama").model.proto)
        .unwrap()
        .interface;
    let text = triton_config(&interface.inputs, &interface.logits);
    fs::write(repository.join("config.pbtxt"), &text).unwrap();
    let out = place.path().join("out");
    let report = rewritten(&repository, &out, &["--rank", "24", "--factors", "weights"]);
    assert_eq!(report["folder"]["serving"], json!(["triton"]));
    let configs = [&repository, &out].map(|f| f.join("config.pbtxt"));
    let differing = told(
        &serving_python(),
        "tests/python/triton_config.py",
        &[&configs[0], &configs[1]],
    );
    let differing = differing.as_object().unwrap();
    // Four caches, each as an input, as a state and as what the state begins with.
    assert_eq!(differing.len(), 12, "{differing:#?}");
    for (field, values) in differing {
        assert!(field.ends_with(".dims"), "{field}");
        let [before, after] = [&values[0], &values[1]];
        assert_eq!(
            (before[0].clone(), before[2].clone()),
            (json!(2), json!(16)),
            "{field}"
        );
        assert_eq!(before[1], after[1], "{field}");
        assert_eq!(
            (after[0].clone(), after[2].clone()),
            (json!(1), json!(24)),
            "{field}"
        );
    }
    let comment = fs::read_to_string(&configs[1]).unwrap();
    assert!(comment.starts_with("name: \"llama\" # served as it is\n"));
}

#[test]
fn a_triton_configuration_is_made_where_there_is_none() {
    let place = folder();
    // Two take batches; the third has an input that says which branch to take, and no batch in front of it.
    for (name, batch, cache) in [
        ("optimum-llama", 8, json!([1, -1, 32])),
        ("dynamo18-smollm3", 8, json!([1, -1, 32])),
        ("merged-llama", 0, json!([-1, 1, -1, 32])),
    ] {
        let out = place.path().join(name);
        let report = rewritten(&fixture(name), &out, &["--serving", "triton"]);
        assert_eq!(
            edited(&report),
            [format!("max_batch_size -> {batch}").replace("->", "null ->")]
        );
        assert!(out.join("1/model.onnx").is_file());
        let empty = place.path().join("empty.pbtxt");
        fs::write(&empty, "").unwrap();
        let config = out.join("config.pbtxt");
        let told = told(
            &serving_python(),
            "tests/python/triton_config.py",
            &[&empty, &config],
        );
        let inputs = told["input"][1].as_array().unwrap();
        let interface = subject(&common::model_at(&out.join("1/model.onnx")).model.proto)
            .unwrap()
            .interface;
        assert_eq!(inputs.len(), interface.inputs.len());
        let key = inputs
            .iter()
            .find(|i| i["name"] == "past_key_values.0.key")
            .unwrap();
        assert_eq!(key["dims"], cache, "{name}");
        assert_eq!(
            told["output"][1].as_array().unwrap().len(),
            1 + interface.caches.len()
        );
    }
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

#[test]
fn a_trained_model_writes_the_same_in_genai_and_its_half_takes_half() {
    let Some(original) = real_model("genai-builder-fp32") else {
        return;
    };
    let place = tempfile::tempdir_in(original.parent().unwrap()).unwrap();
    let before = in_genai(&original, "64", REAL);
    assert_eq!(before[0]["tokens"][0].as_array().unwrap().len(), 5 + 64);
    for target in ["matmul", "gqa"] {
        let out = place.path().join(target);
        rewritten(&original, &out, &["--target", target]);
        assert_eq!(in_genai(&out, "64", REAL), before, "{target}");
        let half = [
            "--cache-ratio",
            "0.5",
            "--factors",
            "weights",
            "--target",
            target,
        ];
        rewritten(&original, &out, &half);
        assert_eq!(
            cache_bytes(&in_genai(&out, "4", REAL)),
            [23_040.0, 23_040.0],
            "{target}"
        );
    }
}

#[test]
fn a_trained_model_writes_the_same_in_optimum_and_in_transformers_js() {
    let Some(original) = real_model("optimum-opset14") else {
        return;
    };
    let place = tempfile::tempdir_in(original.parent().unwrap()).unwrap();
    let out = place.path().join("out");
    rewritten(&original, &out, &[]);
    assert_eq!(
        in_optimum(&out, "32", REAL_PADDED),
        in_optimum(&original, "32", REAL_PADDED)
    );
    // Laid out as on a hub, where the library looks for models.
    let hub = place.path().join("hub");
    fs::create_dir_all(hub.join("onnx")).unwrap();
    for name in ["model.onnx", "model.onnx.data"] {
        fs::copy(original.join(name), hub.join("onnx").join(name)).unwrap();
    }
    fs::copy(original.join("config.json"), hub.join("config.json")).unwrap();
    let served = place.path().join("served");
    rewritten(&hub, &served, &[]);
    let (before, after) = (
        in_transformers_js(&hub, "32", REAL_PADDED, ""),
        in_transformers_js(&served, "32", REAL_PADDED, ""),
    );
    assert_eq!(before, after);
    let half = ["--cache-ratio", "0.5", "--factors", "weights"];
    rewritten(&original, &out, &half);
    assert_eq!(
        cache_bytes(&in_optimum(&out, "4", REAL_PADDED)),
        [23_040.0; 4]
    );
    rewritten(&hub, &served, &half);
    assert_eq!(
        cache_bytes(&in_transformers_js(&served, "4", REAL_PADDED, "")),
        [23_040.0; 2]
    );
}
