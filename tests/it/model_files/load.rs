//! Models that load.

use super::*;

#[test]
fn several_data_files_with_unaligned_ranges() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("parts")).unwrap();
    fs::write(folder.path().join("a.data"), pattern(100, 0)).unwrap();
    fs::write(folder.path().join("parts/b.data"), pattern(50, 7)).unwrap();
    let path = write(
        folder.path(),
        &model(vec![
            external(
                "all given",
                10,
                &[("location", "a.data"), ("offset", "3"), ("length", "10")],
            ),
            external("no length", 97, &[("location", "a.data"), ("offset", "3")]),
            external("no offset", 50, &[("location", "parts/b.data")]),
            external("empty", 0, &[("location", "a.data"), ("offset", "100")]),
            raw("inline", vec![1, 2, 3]),
        ]),
    );
    let model = load(&path).unwrap().model;
    assert_eq!(bytes(&model, "all given"), pattern(100, 0)[3..13]);
    assert_eq!(bytes(&model, "no length"), pattern(100, 0)[3..]);
    assert_eq!(bytes(&model, "no offset"), pattern(50, 7));
    assert_eq!(bytes(&model, "empty"), "");
    assert_eq!(bytes(&model, "inline"), vec![1, 2, 3]);
    assert_eq!(model.files.len(), 2);
}

#[test]
fn weights_inside_the_model_file_are_not_copied() {
    let folder = TempDir::new().unwrap();
    let path = write(folder.path(), &model(vec![raw("w", pattern(1000, 0))]));
    let loaded = load(&path).unwrap();
    let whole = loaded.source.bytes().as_ptr_range();
    assert!(whole.contains(&bytes(&loaded.model, "w").as_ptr()));
}

#[test]
fn a_folder_stands_for_its_only_model_or_model_onnx() {
    let folder = TempDir::new().unwrap();
    assert_says(&refusal(folder.path()), &["expected one .onnx", "none"]);
    let content = model(vec![]).encode_to_vec();
    fs::write(folder.path().join("b.onnx"), &content).unwrap();
    fs::write(folder.path().join("b.onnx.data"), "").unwrap();
    let found = load(folder.path()).unwrap().path;
    assert_eq!(found, folder.path().join("b.onnx"));
    fs::write(folder.path().join("a.onnx"), &content).unwrap();
    assert_says(
        &refusal(folder.path()),
        &["a.onnx, b.onnx", "name the file"],
    );
    fs::write(folder.path().join("model.onnx"), &content).unwrap();
    let found = load(folder.path()).unwrap().path;
    assert_eq!(found, folder.path().join("model.onnx"));
}

/// A hub's cache: the files of a snapshot, also in a folder of it, are links to blobs. Small ones can be plain files.
#[cfg(unix)]
#[test]
fn a_hub_cache_loads() {
    use std::os::unix::fs::symlink;
    let message = model(vec![external("w", 9, &[("location", "model.onnx.data")])]);
    for (inside, up) in [("", "../.."), ("onnx", "../../..")] {
        for model_is_a_link in [true, false] {
            let cache = TempDir::new().unwrap();
            let snapshot = cache.path().join("snapshots/1f3a").join(inside);
            fs::create_dir(cache.path().join("blobs")).unwrap();
            fs::create_dir_all(&snapshot).unwrap();
            fs::write(cache.path().join("blobs/da7a"), pattern(9, 0)).unwrap();
            fs::write(cache.path().join("private"), pattern(9, 0)).unwrap();
            let data = snapshot.join("model.onnx.data");
            symlink(format!("{up}/blobs/da7a"), &data).unwrap();
            if model_is_a_link {
                let blob = cache.path().join("blobs/c0de");
                fs::write(blob, message.encode_to_vec()).unwrap();
                symlink(format!("{up}/blobs/c0de"), snapshot.join("model.onnx")).unwrap();
            } else {
                write(&snapshot, &message);
            }
            let loaded = load(&snapshot).unwrap();
            let out = TempDir::new().unwrap();
            let copy = saved(&loaded, out.path());
            assert_eq!(bytes(&copy.model, "w"), pattern(9, 0));

            fs::remove_file(&data).unwrap();
            symlink(format!("{up}/private"), &data).unwrap();
            assert_says(&refusal(&snapshot), &["'w'", "outside the model's folder"]);
        }
    }
}

#[test]
fn links_inside_the_folder_are_followed() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("real"), pattern(9, 0)).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("real", folder.path().join("w.data")).unwrap();
    #[cfg(not(unix))]
    fs::copy(folder.path().join("real"), folder.path().join("w.data")).unwrap();
    let path = write(
        folder.path(),
        &model(vec![external("w", 9, &[("location", "w.data")])]),
    );
    assert_eq!(bytes(&load(&path).unwrap().model, "w"), pattern(9, 0));
}
