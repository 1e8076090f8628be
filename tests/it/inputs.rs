//! What is given to a command: folders with several models, files that are no models, and files that a rewrite leaves behind.

use crate::common::{IDS, fixture, folder, with};
use serde_json::json;

#[test]
fn all_models_of_a_folder_are_inspected() {
    let place = folder();
    for (name, model) in [("a.onnx", "optimum-llama"), ("b.onnx", "optimum-qwen2")] {
        std::fs::copy(fixture(model).join("model.onnx"), place.path().join(name)).unwrap();
    }
    let told = with(&[&"inspect", &place.path(), &"--json"]).json();
    let models = told["models"].as_array().unwrap();
    let bytes: Vec<_> = models.iter().map(|m| &m["cache_bytes_per_token"]).collect();
    assert_eq!(bytes, [&json!(512), &json!(256)]);
    // Other commands need to be told which.
    let ran = with(&[&"print", &place.path()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("a.onnx, b.onnx: name the file"),
        "{}",
        ran.stderr
    );
}

#[test]
fn files_that_are_no_models_are_told_apart() {
    let place = folder();
    let at = |name: &str| place.path().join(name);
    let stats = at("stats");
    let llama = fixture("optimum-llama");
    let ran = with(&[&"calibrate", &llama, &"-o", &stats, &IDS[0], &IDS[1]]);
    assert_eq!(ran.code, 0, "{ran:?}");
    std::fs::write(at("model.onnx.data"), [0xff; 64]).unwrap();
    std::fs::create_dir_all(at("hub/sub")).unwrap();
    std::fs::create_dir(at("empty")).unwrap();
    std::fs::copy(llama.join("model.onnx"), at("hub/sub/model.onnx")).unwrap();
    let cases = [
        (stats, "statistics (--calibration)"),
        (at("model.onnx.data"), "give the .onnx file beside it"),
        (at("empty"), "optimum-cli export"),
        ("https://huggingface.co/a/b".into(), "--model a/b"),
        ("no-such-model".into(), "--model no-such-model"),
    ];
    for (path, words) in cases {
        let ran = with(&[&"inspect", &path]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(
            ran.stderr.contains(words),
            "{}: {}",
            path.display(),
            ran.stderr
        );
    }
    let nested = with(&[&"inspect", &at("hub")]);
    assert_eq!(nested.code, 0, "{nested:?}");
    std::fs::write(at("utf16.txt"), "a\0b\0c\0").unwrap();
    let text = at("utf16.txt");
    let tokenizer = at("tokenizer.json");
    std::fs::write(&tokenizer, "{}").unwrap();
    let ran = with(&[
        &"calibrate",
        &llama,
        &"-o",
        &at("s"),
        &"--text",
        &text,
        &"--tokenizer",
        &tokenizer,
    ]);
    assert_eq!(ran.code, 1, "{ran:?}");
}

#[test]
fn what_a_folder_does_not_take_along_is_told() {
    let place = folder();
    let genai = fixture("genai-llama");
    let from = place.path().join("from");
    std::fs::create_dir(&from).unwrap();
    for entry in std::fs::read_dir(&genai).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, from.join(path.file_name().unwrap())).unwrap();
        }
    }
    for name in ["model.safetensors", "pytorch_model.bin"] {
        std::fs::write(from.join(name), "weights").unwrap();
    }
    let out = place.path().join("out");
    let ran = with(&[&"rewrite", &from, &"-o", &out, &"--no-validate"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for name in ["model.safetensors", "pytorch_model.bin"] {
        assert!(
            ran.stdout.contains(&format!("left out: {name}, which has")),
            "{}",
            ran.stdout
        );
        assert!(!out.join(name).exists());
    }
    assert!(out.join("genai_config.json").exists());
    let file = from.join("new.onnx");
    let ran = with(&[
        &"rewrite",
        &from.join("model.onnx"),
        &"-o",
        &file,
        &"--no-validate",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout.contains("genai_config.json: as it was"),
        "{}",
        ran.stdout
    );
}
