//! Files that a run reads, or that others wrote, are not replaced by what it writes beside a model.

use std::fs;
use std::path::Path;

use crate::common::{Ran, fixture, folder, root, with};

fn rewrite(model: &Path, out: &Path, more: &[&dyn AsRef<Path>]) -> Ran {
    let mut all: Vec<&dyn AsRef<Path>> = vec![&"rewrite", &model, &"-o", &out, &"--no-validate"];
    all.extend(more);
    with(&all)
}

#[test]
fn a_report_replaces_nothing_but_a_report() {
    let place = folder();
    let at = |name: &str| place.path().join(name);
    let (ids, other, page) = (at("ids.json"), at("other.json"), at("page.html"));
    fs::copy(root().join("fixtures/tokens.json"), &ids).unwrap();
    fs::write(&other, "{\"mine\": 1}").unwrap();
    let model = fixture("optimum-llama").join("model.onnx");
    let force: &dyn AsRef<Path> = &"--force";
    let integers: [&dyn AsRef<Path>; 6] = [
        &"--cache-bits",
        &"8",
        &"--token-ids",
        &ids,
        &"--reconstruct",
        &"0",
    ];
    let reads = [&integers[..], &[force, &"--report", &ids]].concat();
    let foreign: [&dyn AsRef<Path>; 2] = [&"--report", &other];
    for (more, words) in [
        (reads, "would replace an input"),
        (foreign.to_vec(), "give --force to replace it"),
    ] {
        let ran = rewrite(&model, &at("out.onnx"), &more);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
        assert!(!at("out.onnx").exists());
    }
    assert_eq!(fs::read_to_string(&other).unwrap(), "{\"mine\": 1}");
    assert!(fs::read_to_string(&ids).unwrap().starts_with('['));
    // Its own reports are replaced, and with --force others are.
    for report in [&page, &page, &other] {
        let ran = rewrite(&model, &at("out.onnx"), &[&"--report", report, force]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    for report in [&page, &other] {
        let ran = rewrite(&model, &at("out.onnx"), &[&"--report", report]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
}

#[test]
fn a_report_takes_no_name_of_its_output() {
    let place = folder();
    let out = place.path().join("out");
    let report = out.join("genai_config.json");
    let ran = rewrite(&fixture("genai-llama"), &out, &[&"--report", &report]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("has a file of this name") && !out.exists());
    let own = out.join("report.json");
    let ran = rewrite(&fixture("genai-llama"), &out, &[&"--report", &own]);
    assert_eq!((ran.code, own.is_file()), (0, true), "{ran:?}");
}

#[test]
fn statistics_replace_nothing_but_statistics() {
    let place = folder();
    let out = place.path().join("stats");
    let ids = root().join("fixtures/tokens.json");
    let calibrate = |more: &[&dyn AsRef<Path>]| {
        let model = fixture("optimum-llama");
        let mut all: Vec<&dyn AsRef<Path>> =
            vec![&"calibrate", &model, &"--token-ids", &ids, &"-o", &out];
        all.extend(more);
        with(&all)
    };
    fs::write(&out, "a text").unwrap();
    let ran = calibrate(&[]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert_eq!(fs::read_to_string(&out).unwrap(), "a text");
    assert!(ran.stderr.contains("give --force to replace it"), "{ran:?}");
    // So is the file that a stopped run would have left.
    let partial = place.path().join("stats.partial");
    fs::rename(&out, &partial).unwrap();
    let ran = calibrate(&[]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert_eq!(fs::read_to_string(&partial).unwrap(), "a text");
    // A folder is told before the text is read.
    fs::create_dir(&out).unwrap();
    let ran = calibrate(&[&"--force"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(!ran.stderr.contains("reading text"), "{ran:?}");
    fs::remove_dir(&out).unwrap();
    assert_eq!(calibrate(&[&"--force"]).code, 0);
    assert_eq!(calibrate(&[]).code, 0);
}

#[test]
fn a_data_file_of_others_in_the_output_folder_stays() {
    let place = folder();
    let data = place.path().join("model.onnx.data");
    fs::write(&data, "mine").unwrap();
    let ran = rewrite(&fixture("genai-llama"), place.path(), &[]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("model.onnx.data"), "{ran:?}");
    assert_eq!(fs::read_to_string(&data).unwrap(), "mine");
}

#[test]
fn options_without_effect_and_ways_that_a_stack_cannot_serve_are_refused() {
    let place = folder();
    let out = place.path().join("out");
    let ids = root().join("fixtures/tokens.json");
    let llama = fixture("optimum-llama");
    let ran = with(&[
        &"validate",
        &llama,
        &llama,
        &"--token-ids",
        &ids,
        &"--tolerance",
        &"0.1",
    ]);
    assert_eq!(ran.code, 2, "{ran:?}");
    let text: [&dyn AsRef<Path>; 3] = [&"--token-ids", &ids, &"--force"];
    for (model, more, words) in [
        (
            "genai-llama",
            &["--cache-bits", "8", "--keep-heads", "--target", "matmul"][..],
            "leave out --target matmul",
        ),
        (
            "optimum-llama",
            &["--cache-bits", "8", "--new-tokens", "exact"],
            "leave out --new-tokens exact",
        ),
        (
            "optimum-llama",
            &["--factors", "transmla"],
            "TransMLA's differ",
        ),
    ] {
        let more: Vec<&dyn AsRef<Path>> = more.iter().map(|m| m as _).collect();
        let ran = rewrite(&fixture(model), &out, &[&more[..], &text[..]].concat());
        assert_ne!(ran.code, 0, "{ran:?}");
        assert!(ran.stderr.contains(words) && !out.exists(), "{ran:?}");
    }
    let ran = rewrite(&llama, &out, &[&"--onnxruntime", &"/nowhere"]);
    assert_eq!(ran.code, 0, "nothing is run: {ran:?}");
    let out = place.path().join("proved.onnx");
    let model = llama.join("model.onnx");
    let ran = with(&[
        &"rewrite",
        &model,
        &"-o",
        &out,
        &"--onnxruntime",
        &"/nowhere",
    ]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(!ran.stderr.contains("--no-validate"), "{ran:?}");
}

#[test]
fn times_of_a_model_without_a_cache_are_those_of_its_prompt() {
    let place = folder();
    let out = place.path().join("out");
    let ran = rewrite(&fixture("dynamo18-llama-nocache"), &out, &[&"--bench"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("prefill of"), "{ran:?}");
}

#[test]
fn a_file_is_no_output_folder() {
    let place = folder();
    let (file, model) = (place.path().join("file"), fixture("optimum-llama"));
    std::fs::write(&file, "mine").unwrap();
    let inside = file.join("out");
    for input in [model.clone(), model.join("model.onnx")] {
        for out in [&file, &inside, &file.join("below/model.onnx")] {
            for more in ["--no-validate", "--dry-run"] {
                let ran = with(&[&"rewrite", &input, &"-o", out, &more]);
                assert_eq!(ran.code, 2, "{ran:?}");
                let named = format!("{} is a file: an output is a folder", file.display());
                assert!(ran.stderr.contains(&named), "{ran:?}");
            }
        }
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}
