//! What an output takes over from its input: permissions, and holes.

use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

#[test]
fn permissions_follow_the_input() {
    let place = folder();
    let model = input(MODEL, place.path());
    let from = model.parent().unwrap();
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    set(&model, 0o640);
    let single = place.path().join("single");
    assert_eq!(rewrite(&model, &single.join("out.onnx"), &[]).code, 0);
    assert_eq!(names(&single).len(), 2);
    for name in names(&single) {
        assert_eq!(mode(&single.join(&name)), 0o640, "{name}");
    }
    set(&from.join("genai_config.json"), 0o600);
    set(from, 0o750);
    let out = place.path().join("out");
    assert_eq!(rewrite(from, &out, &[]).code, 0);
    assert_eq!(mode(&out), 0o750);
    assert_eq!(mode(&out.join("genai_config.json")), 0o600);
    assert_eq!(mode(&out.join("model.onnx")), 0o640);
}

#[test]
fn sparse_weights_stay_sparse() {
    let place = folder();
    let model = input(MODEL, place.path());
    let data = model.with_file_name("model.onnx.data");
    // The embedding is no part of what a rewrite changes: as a hole it has to arrive as one.
    let length = fs::metadata(&data).unwrap().len();
    fs::remove_file(&data).unwrap();
    fs::File::create(&data).unwrap().set_len(length).unwrap();
    let out = place.path().join("out/model.onnx");
    let ran = rewrite(&model, &out, &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let written = fs::metadata(
        out.with_file_name(
            names(out.parent().unwrap())
                .into_iter()
                .find(|n| n.ends_with(".data"))
                .unwrap(),
        ),
    )
    .unwrap();
    let stored = written.blocks() * 512;
    assert!(stored < length / 4, "{stored} bytes are stored of {length}");
}
