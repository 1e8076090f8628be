//! Folders in, folders out: what goes along, what is refused, and what is left when something goes wrong.

#[path = "folders/configurations.rs"]
mod configurations;
#[path = "folders/data_files.rs"]
mod data_files;
#[path = "folders/trouble.rs"]
mod trouble;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Ran, command, fixture, folder, run};
use serde_json::json;

fn rewrite(from: &Path, to: &Path, more: &[&str]) -> Ran {
    let mut arguments = vec![
        PathBuf::from("rewrite"),
        from.into(),
        "-o".into(),
        to.into(),
    ];
    arguments.extend(more.iter().map(PathBuf::from));
    run(arguments)
}

/// Every file under `folder` with its content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => left.push(path),
                false => {
                    let relative = path.strip_prefix(folder).unwrap().to_path_buf();
                    found.insert(relative, fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}

fn names(files: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<String> {
    files
        .keys()
        .map(|name| name.display().to_string())
        .collect()
}

/// A folder as a hub lays it out: two decoders, another model, and what people put beside them.
fn hub(place: &Path) -> PathBuf {
    let hub = place.join("hub");
    fs::create_dir_all(hub.join("onnx")).unwrap();
    let model = |name: &str| fixture(name).join("model.onnx");
    fs::copy(model("optimum-llama"), hub.join("onnx/model.onnx")).unwrap();
    fs::copy(model("optimum14-llama"), hub.join("onnx/model_other.onnx")).unwrap();
    fs::copy(
        fixture("optimum-llama").join("config.json"),
        hub.join("config.json"),
    )
    .unwrap();
    for (name, text) in [
        ("README.md", "# A model"),
        ("tokenizer.json", "{ \"not\": \"touched\" }"),
        ("generation_config.json", "{\"eos_token_id\": 2}"),
        (".gitattributes", "*.onnx filter=lfs"),
        ("notes/more/deep.txt", "kept"),
    ] {
        let path = hub.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::create_dir_all(hub.join(".git")).unwrap();
    fs::write(hub.join(".git/HEAD"), "ref").unwrap();
    hub
}

#[test]
fn what_the_rewrite_does_not_concern_is_copied_as_it_is() {
    let place = folder();
    let (hub, out) = (hub(place.path()), place.path().join("out"));
    let ran = rewrite(&hub, &out, &["--json", "--no-validate"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let (before, after) = (contents(&hub), contents(&out));
    let mut expected = names(&before);
    expected.retain(|name| !name.starts_with(".git/"));
    assert_eq!(names(&after), expected);
    let changed = after
        .iter()
        .filter(|(name, data)| before.get(*name) != Some(*data));
    let changed: Vec<_> = changed
        .map(|(name, _)| name.display().to_string())
        .collect();
    assert_eq!(
        changed,
        ["config.json", "onnx/model.onnx", "onnx/model_other.onnx"]
    );
    let told = ran.json();
    assert_eq!(told["models"].as_array().unwrap().len(), 2);
    assert_eq!(told["folder"]["copied"], json!(5));
    // A second time, into the folder that is there now.
    let again = rewrite(&hub, &out, &["--no-validate"]);
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(contents(&out), after);
}

#[test]
fn one_model_of_several_can_be_asked_for() {
    let place = folder();
    let (hub, out) = (hub(place.path()), place.path().join("out"));
    let ran = rewrite(
        &hub,
        &out,
        &["--json", "--no-validate", "--file", "onnx/model.onnx"],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.json()["folder"]["left_out"],
        json!(["onnx/model_other.onnx"])
    );
    assert!(
        !out.join("onnx/model_other.onnx").exists(),
        "its cache is not what the configuration says"
    );
    let ran = rewrite(&hub, &place.path().join("no"), &["--file", "model.onnx"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .contains("onnx/model.onnx, onnx/model_other.onnx"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_rejected_folder_is_kept_under_another_name() {
    let place = folder();
    let out = place.path().join("out");
    let strict = ["--tolerance", "1e-30", "--rank", "8"];
    for _ in 0..2 {
        let ran = rewrite(&fixture("optimum-llama"), &out, &strict);
        assert_eq!(ran.code, 4, "{ran:?}");
        assert!(!out.exists());
        assert!(place.path().join("out.rejected/config.json").is_file());
    }
    let names: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["out.rejected"]);
}

#[test]
fn neither_of_input_and_output_folder_lies_in_the_other() {
    let place = folder();
    let from = place.path().join("model");
    fs::create_dir_all(&from).unwrap();
    for name in ["model.onnx", "config.json"] {
        fs::copy(fixture("optimum-llama").join(name), from.join(name)).unwrap();
    }
    let before = contents(place.path());
    let roundabout = place.path().join("new/../model/latent");
    for (out, words) in [
        (from.join("latent"), "lies inside the input folder"),
        (from.join("more/latent"), "lies inside the input folder"),
        (roundabout, "lies inside the input folder"),
        (place.path().to_path_buf(), "would replace an input"),
    ] {
        for more in [&["--force"][..], &["--dry-run"]] {
            let ran = rewrite(&from, &out, more);
            assert_eq!(ran.code, 2, "{}: {ran:?}", out.display());
            assert!(ran.stderr.contains(words), "{ran:?}");
        }
    }
    assert!(contents(place.path()) == before);
    let ran = rewrite(&from, &place.path().join("latent"), &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn a_model_that_was_written_beside_its_original_is_not_rewritten_with_the_folder() {
    let place = folder();
    let from = place.path().join("model");
    fs::create_dir_all(&from).unwrap();
    for name in ["model.onnx", "config.json"] {
        fs::copy(fixture("optimum-llama").join(name), from.join(name)).unwrap();
    }
    for half in ["half.onnx", "deep/half.onnx"] {
        let ran = rewrite(&from.join("model.onnx"), &from.join(half), &[]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let ran = run(["inspect".as_ref(), from.as_os_str()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("model/model.onnx: "), "{ran:?}");
    let out = place.path().join("out");
    let ran = rewrite(&from, &out, &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for half in ["half.onnx", "deep/half.onnx"] {
        let words = format!("left out: {half}, which gqa2mla wrote");
        assert!(ran.stdout.contains(&words), "{ran:?}");
    }
    assert_eq!(
        names(&contents(&out)),
        ["config.json", "model.onnx", "model.onnx.data"]
    );
    // A folder of nothing else is what the user means: it is told why there is nothing to do.
    let again = rewrite(&out, &place.path().join("again"), &[]);
    assert_eq!(again.code, 3, "{again:?}");
}
