//! `--target auto`: the target is measured, told, and the rewrite is that of the target alone. No test looks at a time.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::{folder, rewrite_fixture};

/// What `gqa2mla rewrite FIXTURE --target auto ARGUMENTS` says, and the folder of its output `model.onnx`.
fn rewritten(name: &str, more: &[&str]) -> (Value, tempfile::TempDir) {
    let place = folder();
    let arguments = [&["--target", "auto", "--json"], more].concat();
    let ran = rewrite_fixture(name, &place.path().join("model.onnx"), &arguments);
    assert_eq!(ran.code, 0, "{ran:?}");
    (ran.json(), place)
}

#[test]
fn the_faster_target_is_taken_and_told_and_no_draft_is_left() {
    for name in ["genai-llama", "dynamo18-llama"] {
        let (told, place) = rewritten(name, &[]);
        let choice = &told["target_choice"];
        let time = |target: &str| choice["milliseconds"][target].as_f64().unwrap();
        let target = choice["target"].as_str().unwrap();
        let other = ["matmul", "gqa"]
            .into_iter()
            .find(|t| *t != target)
            .unwrap();
        assert!(time(target) <= time(other), "{told}");
        assert_eq!(told["rewrite"]["target"], target);
        let why = choice["why"].as_str().unwrap();
        assert!(why.contains("past token") && why.contains(other), "{why}");
        assert_eq!(told["validation"]["passed"], true, "{told}");
        let mut files: Vec<_> = fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files.len(), 2, "{files:?}");
        assert!(
            files.iter().all(|f| f.starts_with("model.onnx")),
            "{files:?}"
        );

        // The same file as with this target alone.
        let direct = folder();
        let out = direct.path().join("model.onnx");
        let ran = rewrite_fixture(name, &out, &["--target", target, "--no-validate"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let read = |place: &Path| fs::read(place.join("model.onnx")).unwrap();
        assert!(read(direct.path()) == read(place.path()), "{name}");
    }
}

#[test]
fn the_only_target_that_works_is_taken_with_the_reason_of_the_other() {
    for (name, more) in [
        // Keys and values have different sizes, which the operator does not support.
        ("dynamo18-dv", &[][..]),
        ("dynamo18-llama", &["--form", "expanded"][..]),
    ] {
        let (told, _place) = rewritten(name, more);
        let choice = &told["target_choice"];
        assert_eq!(choice["target"], "matmul", "{told}");
        let why = choice["why"].as_str().unwrap();
        assert!(why.starts_with("gqa is refused: "), "{why}");
        assert!(choice["milliseconds"].as_object().unwrap().is_empty());
    }
}

#[test]
fn a_folder_is_measured_by_its_model_and_the_report_tells_why() {
    let place = folder();
    let (out, report) = (place.path().join("out"), place.path().join("report.html"));
    let arguments = ["--target", "auto", "--report", report.to_str().unwrap()];
    let ran = rewrite_fixture("genai-llama", &out, &arguments);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.starts_with("target "), "{ran:?}");
    let page = fs::read_to_string(report).unwrap();
    assert!(page.contains(": a decode step at"));
}

/// The context is that of the original's configuration, which the drafts do not have beside them.
#[test]
fn the_longest_past_that_the_context_allows_decides() {
    for (more, past) in [
        (&[][..], "at 128 past tokens"),
        (&["--context", "24"], "at 12 past tokens"),
    ] {
        let (told, _place) = rewritten("genai-llama", more);
        let why = told["target_choice"]["why"].as_str().unwrap();
        assert!(why.contains(past), "{why}");
    }
}

#[test]
fn what_hinders_a_measurement_is_told_before_anything_is_written() {
    let place = folder();
    let out = place.path().join("out.onnx");
    fs::write(&out, "mine").unwrap();
    let give = "give --target matmul or gqa";
    for (name, more, told) in [
        ("genai-llama", &["--dry-run"][..], give),
        ("genai-llama", &["--no-validate"], give),
        ("genai-llama", &["--max-kl", "0.1"], give),
        ("dynamo18-llama-nocache", &["--force"], "the model has none"),
        ("genai-llama", &[], "--force"),
    ] {
        let arguments = [&["--target", "auto"], more].concat();
        let ran = rewrite_fixture(name, &out, &arguments);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(told), "{ran:?}");
    }
    assert_eq!(fs::read_to_string(&out).unwrap(), "mine");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
}
