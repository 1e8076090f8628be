//! Reading and writing loses nothing: the message before and after are equal, as the `onnx` package of Python sees them.
//!
//! These tests need that package (`pip install onnx==1.23.2`) in `.venv`, or in the Python that `GQA2MLA_PYTHON` names;
//! without it they fail.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::shared;
use bytes::Bytes;
use gqa2mla_passes::onnx::attribute_proto::AttributeType;
use gqa2mla_passes::onnx::tensor_proto::{DataLocation, DataType};
use gqa2mla_passes::onnx::{ModelProto, OperatorStatus, Version};
use prost::Message;
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `message_equality.py`; returns what it prints, or what it complains of.
fn python(arguments: Vec<OsString>) -> Result<String, String> {
    let python = std::env::var_os("GQA2MLA_PYTHON")
        .map_or_else(|| root().join(".venv/bin/python"), PathBuf::from);
    let output = Command::new(&python)
        .arg(root().join("tests/python/message_equality.py"))
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}: run `make test`", python.display()));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

/// The files called `file` that lie `depth` folders below `folder`.
fn below(folder: &Path, depth: usize, file: &str) -> Vec<PathBuf> {
    if depth == 0 {
        return [folder.join(file)]
            .into_iter()
            .filter(|f| f.is_file())
            .collect();
    }
    let mut folders: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    folders
        .iter()
        .flat_map(|f| below(f, depth - 1, file))
        .collect()
}

/// Decodes and encodes each of `models`, and has Python compare the results with the originals.
fn survive(models: &[PathBuf]) {
    assert!(!models.is_empty(), "no models to compare");
    let folder = TempDir::new().unwrap();
    let mut arguments = vec![OsString::from("compare")];
    for (number, model) in models.iter().enumerate() {
        let read = Bytes::from(fs::read(model).unwrap());
        let message = ModelProto::decode(read)
            .unwrap_or_else(|e| panic!("{} does not decode: {e}", model.display()));
        let written = folder.path().join(format!("{number}.onnx"));
        fs::write(&written, message.encode_to_vec()).unwrap();
        arguments.extend([model.into(), written.into()]);
    }
    let printed = python(arguments);
    assert_eq!(printed, Ok(format!("{} pairs equal\n", models.len())));
}

#[test]
fn every_field_of_every_message_survives() {
    let folder = TempDir::new().unwrap();
    python(vec!["make".into(), folder.path().into()]).unwrap();
    survive(&[
        folder.path().join("filled.onnx"),
        folder.path().join("defaults.onnx"),
    ]);
}

#[test]
fn fixtures_survive() {
    let fixtures = root().join("fixtures");
    let mut models = below(&fixtures, 1, "model.onnx");
    let near_misses = fs::read_dir(fixtures.join("near_miss")).unwrap();
    let before = models.len();
    models.extend(
        near_misses
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension() == Some(OsStr::new("onnx"))),
    );
    assert!(before >= 40 && models.len() - before >= 10, "{models:?}");
    survive(&models);
}

#[test]
#[ignore = "needs the exports of ../shared"]
fn exports_survive() {
    let mut models = below(&shared("exports"), 2, "model.onnx");
    models.extend(below(&shared("models/smollm2-135m"), 1, "graph.onnx"));
    survive(&models);
}

/// The comparison itself is checked: a field that is there and empty differs from one that is not there.
#[test]
fn a_difference_is_found() {
    let folder = TempDir::new().unwrap();
    let model = root().join("fixtures/optimum-llama/model.onnx");
    let mut message = ModelProto::decode(Bytes::from(fs::read(&model).unwrap())).unwrap();
    let node = message.graph.as_mut().unwrap().node.first_mut().unwrap();
    assert_eq!(node.doc_string.replace(String::new()), None);
    let written = folder.path().join("changed.onnx");
    fs::write(&written, message.encode_to_vec()).unwrap();
    let complaint = python(vec!["compare".into(), model.into(), written.into()]).unwrap_err();
    let place = "model.graph.node[0].doc_string: added";
    assert!(complaint.contains(place), "{complaint}");
}

/// Enumerations are integers on the wire, so only this sees a value that is missing here or has another number.
#[test]
fn enumerations_have_every_value() {
    let printed = python(vec!["enums".into()]).unwrap();
    for line in printed.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let &[enumeration, name, number] = words.as_slice() else {
            panic!("{line}");
        };
        let number: i32 = number.parse().unwrap();
        let found = match enumeration {
            "AttributeType" => AttributeType::try_from(number).map(|v| format!("{v:?}")),
            "DataType" => DataType::try_from(number).map(|v| format!("{v:?}")),
            "DataLocation" => DataLocation::try_from(number).map(|v| format!("{v:?}")),
            "Version" => Version::try_from(number).map(|v| format!("{v:?}")),
            "OperatorStatus" => OperatorStatus::try_from(number).map(|v| format!("{v:?}")),
            _ => panic!("an enumeration that is not declared here: {line}"),
        };
        let found = found.unwrap_or_else(|_| panic!("not declared: {line}"));
        let expected = name.replace('_', "").to_lowercase();
        assert_eq!(found.to_lowercase(), expected, "{line}");
    }
    assert!(printed.lines().count() >= 60, "{printed}");
}
