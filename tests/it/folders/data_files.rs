//! Data files that several models of a folder read.

use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::onnx::{StringStringEntryProto, tensor_proto::DataLocation};
use prost::Message;

use super::*;
use crate::common::loaded;

/// Writes `model` to `path`, with all weights in the file `data` beside it, behind those that it holds already.
fn with_data(mut model: LoadedModel, path: &Path, data: &str) {
    let file = path.with_file_name(data);
    let mut bytes = fs::read(&file).unwrap_or_default();
    let graph = model.model.proto.graph.as_mut().unwrap();
    for tensor in &mut graph.initializer {
        let Some(raw) = tensor.raw_data.take() else {
            continue;
        };
        let places = [
            ("location", data.to_owned()),
            ("offset", bytes.len().to_string()),
            ("length", raw.len().to_string()),
        ];
        tensor.external_data = places
            .map(|(key, value)| StringStringEntryProto {
                key: Some(key.to_owned()),
                value: Some(value),
            })
            .into();
        tensor.data_location = Some(DataLocation::External as i32);
        bytes.extend_from_slice(&raw);
    }
    fs::write(file, bytes).unwrap();
    fs::write(path, model.model.proto.encode_to_vec()).unwrap();
}

fn is_equal(one: &Path, other: &Path) {
    let ran = run([Path::new("validate"), one, other]);
    assert_eq!(ran.code, 0, "{}: {ran:?}", other.display());
}

/// Two decoders with weights in one file.
fn two_decoders(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for (name, model) in [
        ("prefill.onnx", "optimum-llama"),
        ("decode.onnx", "optimum-qwen2"),
    ] {
        with_data(loaded(model), &folder.join(name), "weights.bin");
    }
}

/// A model with a cache and one without, which a rewrite copies; `write` puts each fixture at a path.
fn a_decoder_and_another(folder: &Path, write: impl Fn(&str, &Path)) {
    fs::create_dir_all(folder).unwrap();
    for (name, model) in [
        ("model.onnx", "optimum-llama"),
        ("embed.onnx", "dynamo18-llama-nocache"),
    ] {
        write(model, &folder.join(name));
    }
}

#[test]
fn each_of_two_models_with_one_data_file_gets_its_own() {
    let place = folder();
    let from = place.path().join("from");
    two_decoders(&from);
    let together = place.path().join("together");
    let ran = rewrite(&from, &together, &["--serving", "none"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let one_by_one = place.path().join("one_by_one");
    for name in ["prefill.onnx", "decode.onnx"] {
        let ran = rewrite(&from, &one_by_one, &["--serving", "none", "--file", name]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    for out in [together, one_by_one] {
        for name in ["prefill.onnx", "decode.onnx"] {
            is_equal(&from.join(name), &out.join(name));
        }
    }
}

#[test]
fn a_model_that_is_copied_keeps_the_data_file_that_it_shares() {
    let place = folder();
    let (from, out) = (place.path().join("from"), place.path().join("out"));
    a_decoder_and_another(&from, |model, path| {
        with_data(loaded(model), path, "model.onnx.data")
    });
    let ran = rewrite(&from, &out, &["--serving", "none"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for file in ["embed.onnx", "model.onnx.data"] {
        let read = |folder: &Path| fs::read(folder.join(file)).unwrap();
        assert!(read(&from) == read(&out), "{file} has changed");
    }
    is_equal(&from.join("model.onnx"), &out.join("model.onnx"));
}

/// transformers.js finds the data of a model by its name.
#[test]
fn a_name_that_a_stack_requires_is_not_taken_from_another_model() {
    let place = folder();
    let from = place.path().join("from");
    a_decoder_and_another(&from, |model, path| {
        with_data(loaded(model), path, "model.onnx_data")
    });
    fs::write(from.join("config.json"), "{}").unwrap();
    let out = place.path().join("out");
    let ran = rewrite(&from, &out, &["--serving", "transformers-js"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("model.onnx_data"), "{ran:?}");
    assert!(!out.exists());
}

/// A new configuration for Triton has one model.
#[test]
fn two_models_are_not_written_to_one_path() {
    let place = folder();
    let from = place.path().join("from");
    for name in ["fp32", "quant"] {
        fs::create_dir_all(from.join(name)).unwrap();
        let model = fixture("optimum-llama").join("model.onnx");
        fs::copy(model, from.join(name).join("model.onnx")).unwrap();
    }
    let out = place.path().join("out");
    let ran = rewrite(&from, &out, &["--serving", "triton"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("--file"), "{ran:?}");
    assert!(!out.exists());
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_refused_and_those_of_a_hub_are_not() {
    use std::os::unix::fs::symlink;
    let place = folder();
    let hub = place.path().join("hub");
    let snapshot = hub.join("snapshots/1");
    for folder in [&snapshot, &hub.join("blobs")] {
        fs::create_dir_all(folder).unwrap();
    }
    let model = fixture("optimum-llama").join("model.onnx");
    fs::copy(model, hub.join("blobs/model")).unwrap();
    symlink("../../blobs/model", snapshot.join("model.onnx")).unwrap();
    let out = place.path().join("out");
    let ran = rewrite(&snapshot, &out, &["--serving", "none"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    fs::write(place.path().join("secret"), "mine").unwrap();
    symlink(place.path().join("secret"), snapshot.join("notes.txt")).unwrap();
    let ran = rewrite(
        &snapshot,
        &place.path().join("other"),
        &["--serving", "none"],
    );
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("notes.txt: it is a link to"), "{ran:?}");
    assert!(!place.path().join("other").exists());
}

/// A folder that holds an earlier output also holds the models that were copied into it.
#[test]
fn a_folder_with_a_model_that_is_copied_is_rewritten_again() {
    let place = folder();
    let (from, out) = (place.path().join("from"), place.path().join("out"));
    a_decoder_and_another(&from, |model, path| {
        fs::copy(fixture(model).join("model.onnx"), path).unwrap();
    });
    fs::write(from.join("note.txt"), "first").unwrap();
    for _ in 0..2 {
        let ran = rewrite(&from, &out, &["--serving", "none"]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    fs::write(from.join("note.txt"), "second").unwrap();
    let ran = rewrite(&from, &out, &["--serving", "none", "--dry-run"]);
    assert!(ran.stdout.contains("would replace note.txt"), "{ran:?}");
    // One that is not that copy is the user's.
    fs::copy(
        fixture("optimum-qwen2").join("model.onnx"),
        out.join("embed.onnx"),
    )
    .unwrap();
    let ran = rewrite(&from, &out, &["--serving", "none"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("embed.onnx is there"), "{ran:?}");
}
