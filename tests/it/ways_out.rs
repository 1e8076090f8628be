//! What is not a model, not a text or not a number is refused with what to do instead.

use std::fs;
use std::path::Path;

use crate::common::{fixture, folder, with};

#[test]
fn models_in_other_formats_are_told_how_to_be_exported() {
    let place = folder();
    let mut safetensors = 2_u64.to_le_bytes().to_vec();
    safetensors.extend(b"{}, and then the weights");
    let files: [(&str, &[u8], &str); 8] = [
        ("page.onnx", b"<!DOCTYPE html>\n<html>", "HTML"),
        ("index.onnx", b"{\"model\": 1}", "JSON"),
        ("notes.onnx", b"some words", "it is a text file"),
        ("model.gguf", b"GGUF\x03\0\0\0", "GGUF"),
        ("model.safetensors", &safetensors, "safetensors"),
        ("pytorch_model.bin", b"PK\x03\x04 archive", "PyTorch"),
        ("model.ort", b"\x18\0\0\0ORTM", "ONNX Runtime's own format"),
        (
            "model.onnx",
            b"version https://git-lfs.github.com/spec/v1\n",
            "git lfs pull",
        ),
    ];
    for (name, bytes, word) in files {
        let path = place.path().join(name);
        fs::write(&path, bytes).unwrap();
        let ran = with(&[&"inspect", &path]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(
            ran.stderr.contains(name) && ran.stderr.contains(word),
            "{ran:?}"
        );
        assert!(!ran.stderr.contains("truncated"), "{ran:?}");
    }
}

#[test]
fn a_folder_of_weights_and_the_name_of_a_hub_are_told_the_export_command() {
    let place = folder();
    fs::write(place.path().join("model.safetensors"), "weights").unwrap();
    fs::write(place.path().join("config.json"), "{}").unwrap();
    let elsewhere = folder();
    let out = elsewhere.path().join("out");
    let hub = Path::new("some-owner/Some-Model-1B");
    let runs = [
        with(&[&"inspect", &place.path()]),
        with(&[&"rewrite", &place.path(), &"-o", &out]),
        with(&[&"inspect", &hub]),
    ];
    for ran in runs {
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(
            ran.stderr.contains("optimum-cli export onnx --model"),
            "{ran:?}"
        );
    }
    assert!(!out.exists());
}

#[test]
fn every_command_finds_the_model_of_a_hub_folder() {
    let place = folder();
    let inside = place.path().join("onnx");
    fs::create_dir(&inside).unwrap();
    let model = fixture("optimum-llama").join("model.onnx");
    fs::copy(model, inside.join("model.onnx")).unwrap();
    let ran = with(&[&"inspect", &place.path()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    // Two layers that differ in nothing but their number are one line.
    assert!(ran.stdout.contains("0-1"), "{}", ran.stdout);
    assert!(ran.stdout.contains("and 1 more"), "{}", ran.stdout);
}

#[test]
fn options_that_cannot_be_meant_are_refused_with_what_can() {
    let place = folder();
    let (llama, out) = (fixture("optimum-llama"), place.path().join("out.onnx"));
    let words = place.path().join("words.txt");
    fs::write(&words, "some words of a text").unwrap();
    let latin = place.path().join("latin.txt");
    fs::write(&latin, b"na\xefve").unwrap();
    let rewrite: [&dyn AsRef<Path>; 4] = [&"rewrite", &llama, &"-o", &out];
    let cases: [(&[&dyn AsRef<Path>], &str); 5] = [
        (&[&"--max-perplexity-increase", &"5"], "write 5%"),
        (&[&"--max-kl", &"5%"], "nats"),
        (
            &[&"--prompt-ids", &"1,2,100000"],
            "token id 100000 is out of range",
        ),
        (&[&"--cache-ratio", &"500%"], "above 0 and at most 1"),
        (
            &[&"--cache-ratio", &"50%", &"--text", &words],
            "no tokenizer.json beside the model",
        ),
    ];
    for (options, words) in cases {
        let ran = with(&[&rewrite[..], options].concat());
        assert_eq!(ran.code, 2, "{words}: {ran:?}");
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
    }
    let ran = with(&[&"rewrite", &llama, &"-o", &"-"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("standard output"), "{ran:?}");
    assert!(!out.exists());
}

#[test]
fn half_the_cache_is_said_as_a_number_or_as_a_percentage() {
    let place = folder();
    let half = |ratio: &str| {
        let out = place
            .path()
            .join(format!("{}.onnx", ratio.trim_end_matches('%')));
        let llama = fixture("optimum-llama");
        let ran = with(&[
            &"rewrite",
            &llama,
            &"-o",
            &out,
            &"--cache-ratio",
            &ratio,
            &"--no-validate",
            &"--json",
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json()["rewrite"]["cache_bytes_per_token_after"].clone()
    };
    assert_eq!(half("50%"), half("0.5"));
    assert_eq!(half("0.5"), 256);
}
