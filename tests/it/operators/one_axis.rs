//! `position_ids` of one axis, at which ONNX Runtime's `GroupQueryAttention` ends the process.

use std::path::PathBuf;

use crate::common::{folder, loaded, with};
use gqa2mla::files::save::save;
use gqa2mla_passes::graph::build::int64_vector;
use tempfile::TempDir;

use super::{graph, operators};

/// A fixture whose operators are given the positions `[0]`.
fn changed() -> (TempDir, PathBuf) {
    let mut model = loaded("genai-llama");
    let graph = graph(&mut model);
    graph.initializer.push(int64_vector("positions", &[0]));
    for node in operators(graph, "GroupQueryAttention") {
        node.input.resize(node.input.len().max(10), String::new());
        node.input[9] = "positions".to_owned();
    }
    let place = folder();
    let path = place.path().join("model.onnx");
    save(&model, &path).unwrap();
    (place, path)
}

#[test]
fn positions_of_one_axis_are_refused() {
    let (place, path) = changed();
    let out = place.path().join("out.onnx");
    let ran = with(&[&"rewrite", &path, &"-o", &out]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let reason = "its position_ids do not have the two axes [batch, length]";
    assert!(ran.stderr.contains(reason), "{ran:?}");
}

#[cfg(unix)]
#[test]
fn a_model_at_which_onnx_runtime_aborts_is_an_error_that_names_it() {
    let (_place, path) = changed();
    let ran = with(&[&"validate", &path, &path, &"--runtime", &"ort"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let expected = format!("error: {}: ONNX Runtime aborts", path.display());
    assert!(ran.stderr.contains(&expected), "{ran:?}");
}
