//! Finding ONNX Runtime, running models in it and in tract, and comparing two models by running both.
//!
//! These tests need ONNX Runtime (`pip install onnxruntime==1.32.0`); without it they fail.

#[path = "runtime/interface.rs"]
mod interface;
#[path = "runtime/library.rs"]
mod library;

use std::fs;
use std::path::{Path, PathBuf};

use gqa2mla::runtime::host::Interpreter;
use gqa2mla::runtime::locate::{Surroundings, locate};
use gqa2mla::runtime::tensor::{Data, ElementType, Tensor};
use gqa2mla::runtime::{Provider, RuntimeError, RuntimeKind, RuntimeOptions, open};
use gqa2mla::validate::interface::Interface;
use gqa2mla::validate::port::{AxisSize, Port, Role};
use gqa2mla::validate::{ValidateError, ValidateOptions, greedy, validate};

const FLOAT: i32 = 1;
const INT64: i32 = 7;
const BOOL: i32 = 9;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
        .join("model.onnx")
}

fn ort() -> RuntimeOptions {
    RuntimeOptions {
        runtime: RuntimeKind::Ort,
        threads: 1,
        ..RuntimeOptions::default()
    }
}

fn tract() -> RuntimeOptions {
    RuntimeOptions {
        runtime: RuntimeKind::Tract,
        ..RuntimeOptions::default()
    }
}

/// The runtimes of this build.
fn runtimes() -> Vec<RuntimeOptions> {
    let mut all = vec![ort()];
    if cfg!(feature = "tract") {
        all.push(tract());
    }
    all
}

fn port(name: &str, elem_type: i32, dims: &[&str]) -> Port {
    let dim = |text: &&str| match text.parse() {
        Ok(number) => AxisSize::Fixed(number),
        Err(_) => AxisSize::Symbol((*text).to_owned()),
    };
    Port {
        name: name.to_owned(),
        elem_type,
        dims: dims.iter().map(dim).collect(),
    }
}

/// What the two-layer llama fixtures declare: 2 KV heads of width 16, 128 tokens.
fn llama() -> (Vec<Port>, Vec<Port>) {
    let mut inputs = vec![
        port("input_ids", INT64, &["batch", "seq"]),
        port("attention_mask", INT64, &["batch", "past + seq"]),
        port("position_ids", INT64, &["batch", "seq"]),
    ];
    let mut outputs = vec![port("logits", FLOAT, &["batch", "seq", "128"])];
    for layer in 0..2 {
        for part in ["key", "value"] {
            inputs.push(port(
                &format!("past_key_values.{layer}.{part}"),
                FLOAT,
                &["batch", "2", "past", "16"],
            ));
            outputs.push(port(
                &format!("present.{layer}.{part}"),
                FLOAT,
                &["batch", "2", "past + seq", "16"],
            ));
        }
    }
    (inputs, outputs)
}

fn llama_interface() -> Interface {
    let (inputs, outputs) = llama();
    Interface::of(&inputs, &outputs, &[]).unwrap()
}

fn options() -> ValidateOptions {
    ValidateOptions {
        vocabulary: 128,
        tokens: None,
        seed: 1,
        right_padded_only: false,
        tolerance: None,
    }
}

fn first_run(past: usize) -> Vec<(String, Tensor)> {
    let interface = llama_interface();
    let integers =
        |values: &[i64]| Tensor::new(vec![1, values.len()], Data::I64(values.to_vec())).unwrap();
    let mask = vec![1; past + 2];
    let mut inputs = vec![
        ("input_ids".to_owned(), integers(&[5, 6])),
        ("attention_mask".to_owned(), integers(&mask)),
        ("position_ids".to_owned(), integers(&[0, 1])),
    ];
    for cache in &interface.caches {
        let shape = cache.shape(1, past).unwrap();
        inputs.push((
            cache.past.clone(),
            Tensor::zeros(ElementType::F32, shape).unwrap(),
        ));
    }
    inputs
}

#[test]
fn a_session_says_what_it_runs_in() {
    let session = open(&fixture("optimum-llama"), &ort()).unwrap();
    let text = session.describe();
    assert!(
        text.starts_with("ONNX Runtime 1.") && text.ends_with(", CPU, optimizations off"),
        "{text}"
    );
}

#[test]
fn a_cache_without_tokens_goes_in_and_comes_out() {
    for options in runtimes() {
        for name in ["optimum-llama", "dynamo18-llama"] {
            let mut session = open(&fixture(name), &options).unwrap();
            let outputs = session.run(&first_run(0)).unwrap();
            let shape_of = |name: &str| {
                &outputs
                    .iter()
                    .find(|(output, _)| output == name)
                    .unwrap()
                    .1
                    .shape
            };
            assert_eq!(shape_of("logits"), &[1, 2, 128], "{}", session.describe());
            assert_eq!(
                shape_of("present.1.value"),
                &[1, 2, 2, 16],
                "{}",
                session.describe()
            );
        }
    }
}

#[test]
fn a_missing_input_is_an_error_that_names_it() {
    for options in runtimes() {
        let mut session = open(&fixture("optimum-llama"), &options).unwrap();
        let error = session.run(&first_run(0)[1..]).unwrap_err();
        assert!(error.to_string().contains("input_ids"), "{error}");
    }
}

#[test]
fn a_file_that_is_no_model_is_an_error_in_both_runtimes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.onnx");
    fs::write(&file, "this is not a model").unwrap();
    for options in runtimes() {
        let error = open(&file, &options).err().unwrap();
        let loading = matches!(
            error,
            RuntimeError::Load { .. } | RuntimeError::Tract { .. }
        );
        assert!(loading, "{error}");
    }
}

#[test]
#[cfg(feature = "tract")]
fn onnx_runtime_and_tract_agree() {
    for name in ["optimum-llama", "dynamo18-llama"] {
        let mut one = open(&fixture(name), &ort()).unwrap();
        let mut other = open(&fixture(name), &tract()).unwrap();
        let interface = llama_interface();
        let result = validate(
            &mut *one,
            &mut *other,
            &interface,
            &interface,
            &options(),
            &mut |_, _| {},
        )
        .unwrap();
        assert!(
            result.passed() && result.max_ratio() < 1e-5,
            "{name}: {result:?}"
        );
        // Two layers of keys and values, 2 heads of 16 floats.
        assert_eq!(result.original_cache_bytes, 512.0);
    }
}

#[test]
fn a_model_is_equal_to_itself_in_every_scenario() {
    let interface = llama_interface();
    let mut one = open(&fixture("dynamo18-llama"), &ort()).unwrap();
    let mut other = open(&fixture("dynamo18-llama"), &ort()).unwrap();
    let mut calls = Vec::new();
    let mut progress = |done, total| calls.push((done, total));
    let result = validate(
        &mut *one,
        &mut *other,
        &interface,
        &interface,
        &options(),
        &mut progress,
    )
    .unwrap();
    assert_eq!(
        (
            result.max_ratio(),
            result.mean_kl(),
            result.top1_agreement()
        ),
        (0.0, 0.0, 1.0)
    );
    assert_eq!(calls.last(), Some(&(8, 8)));
    let padded = result
        .steps
        .iter()
        .find(|step| step.scenario.contains("padding"))
        .unwrap();
    assert_eq!((padded.batch, padded.tokens, padded.positions), (2, 8, 13));
}

#[test]
fn models_with_other_weights_do_not_pass() {
    let interface = llama_interface();
    let mut one = open(&fixture("optimum-llama"), &ort()).unwrap();
    let mut other = open(&fixture("optimum-mistral"), &ort()).unwrap();
    let result = validate(
        &mut *one,
        &mut *other,
        &interface,
        &interface,
        &options(),
        &mut |_, _| {},
    )
    .unwrap();
    assert!(!result.passed() && result.mean_kl() > 0.0, "{result:?}");
}

#[test]
fn greedy_text_does_not_depend_on_how_the_prompt_is_cut() {
    let interface = llama_interface();
    let mut session = open(&fixture("optimum-llama"), &ort()).unwrap();
    let all = greedy(&mut *session, &interface, &[3, 1, 4, 1, 5], 6).unwrap();
    let longer: Vec<i64> = [3, 1, 4, 1, 5]
        .into_iter()
        .chain(all[..2].iter().copied())
        .collect();
    assert_eq!(
        greedy(&mut *session, &interface, &longer, 4).unwrap(),
        all[2..]
    );
}

#[test]
fn cuda_without_a_device_is_an_error_and_no_pass_on_the_processor() {
    let options = RuntimeOptions {
        provider: Provider::Cuda,
        ..ort()
    };
    match open(&fixture("optimum-llama"), &options) {
        Ok(session) => assert!(
            session.describe().contains("CUDA"),
            "{}",
            session.describe()
        ),
        Err(error) => {
            assert!(matches!(error, RuntimeError::Provider { .. }), "{error}");
            assert!(error.to_string().contains("CUDA"), "{error}");
        }
    }
    let options = RuntimeOptions {
        provider: Provider::Cuda,
        ..tract()
    };
    assert!(matches!(
        open(&fixture("optimum-llama"), &options),
        Err(RuntimeError::Provider { .. })
    ));
}
