//! Where tensors go, what is kept, and what a failure leaves.

use super::*;

#[test]
fn a_fixture_and_its_saved_copy_hold_equal_messages() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for name in [
        "optimum-llama",
        "dynamo18-llama",
        "genai-llama",
        "genai-llama-int4",
        "merged-llama",
    ] {
        let folder = TempDir::new().unwrap();
        let before = load(&fixtures.join(name)).unwrap();
        let after = saved(&before, folder.path());
        assert!(inlined(&before.model) == inlined(&after.model), "{name}");
    }
}

#[test]
fn every_tensor_of_a_model_is_saved() {
    let folder = TempDir::new().unwrap();
    let out = TempDir::new().unwrap();
    fs::write(folder.path().join("d"), pattern(9, 0)).unwrap();
    let (message, names) = everywhere(|name| external(name, 9, &[("location", "d")]));
    let before = load(&write(folder.path(), &message)).unwrap();
    let after = saved(&before, out.path());
    let mut found = 0;
    visit_tensors(&mut after.model.proto.clone(), &mut |tensor,
                                                        _|
     -> Result<
        (),
        String,
    > {
        assert_eq!(
            External::of(tensor).unwrap().unwrap().location,
            data_file(out.path())
        );
        found += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(found, names.len());
    assert!(inlined(&before.model) == inlined(&after.model));
}

#[test]
fn where_tensors_go() {
    let large = INLINE_BELOW + 1;
    let typed = TensorProto {
        float_data: vec![0.5; large],
        ..tensor("typed", DataType::Float, &[large as i64])
    };
    let broken = TensorProto {
        dims: vec![1 << 40],
        ..raw("contradicts its shape", vec![7])
    };
    let strings = TensorProto {
        string_data: vec![Bytes::from(pattern(large, 0))],
        ..tensor("strings", DataType::String, &[1])
    };
    let mut message = model(vec![
        raw("below", pattern(INLINE_BELOW - 1, 1)),
        raw("at", pattern(INLINE_BELOW, 2)),
        external(
            "was external",
            3,
            &[
                ("checksum", "of another file"),
                ("location", "d"),
                ("vendor", "kept"),
                ("offset", "1"),
            ],
        ),
        typed,
        broken,
        strings,
    ]);
    message.graph.as_mut().unwrap().sparse_initializer = vec![sparse(
        raw("values", pattern(large, 3)),
        raw("indices", pattern(large, 4)),
    )];
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("d"), pattern(9, 0)).unwrap();
    let before = load(&write(folder.path(), &message)).unwrap();
    let mut after = saved(&before, folder.path()).model;
    let entries = |name: &str| -> Vec<(String, String)> {
        let of = |e: &StringStringEntryProto| (e.key().to_owned(), e.value().to_owned());
        initializer(&after, name)
            .external_data
            .iter()
            .map(of)
            .collect()
    };
    let placed = |offset: u64, length: usize| {
        vec![
            ("location".to_owned(), data_file(folder.path())),
            ("offset".to_owned(), offset.to_string()),
            ("length".to_owned(), length.to_string()),
        ]
    };
    assert_eq!(entries("below"), []);
    assert_eq!(entries("at"), placed(0, INLINE_BELOW));
    let mut kept = placed(INLINE_BELOW as u64, 3);
    kept.push(("vendor".to_owned(), "kept".to_owned()));
    assert_eq!(entries("was external"), kept);
    assert_eq!(
        entries("typed"),
        placed(INLINE_BELOW as u64 + PACKING, 4 * large)
    );
    assert!(initializer(&after, "typed").float_data.is_empty());
    for name in ["contradicts its shape", "strings"] {
        assert_eq!(initializer(&after, name), initializer(&before.model, name));
    }
    assert_eq!(bytes(&after, "below"), pattern(INLINE_BELOW - 1, 1));
    assert_eq!(bytes(&after, "at"), pattern(INLINE_BELOW, 2));
    assert_eq!(bytes(&after, "was external"), pattern(9, 0)[1..4]);
    assert_eq!(bytes(&after, "typed"), bytes(&before.model, "typed"));
    visit_tensors(&mut after.proto, &mut |tensor,
                                          role|
     -> Result<(), String> {
        let inline = External::of(tensor).unwrap().is_none();
        assert!(inline || role == TensorStorage::Dense, "{}", tensor.name());
        Ok(())
    })
    .unwrap();
}

/// A quantized model has hundreds of small tensors, whose gaps would be larger than they are.
#[test]
fn only_large_tensors_begin_where_a_runtime_can_map_them() {
    let large = usize::try_from(LARGE).unwrap();
    let tensors = vec![
        raw("small", pattern(INLINE_BELOW + 1, 1)),
        raw("next", pattern(large - 1, 2)),
        raw("large", pattern(large, 3)),
        raw("last", pattern(INLINE_BELOW, 4)),
    ];
    let folder = TempDir::new().unwrap();
    let before = load(&write(folder.path(), &model(tensors))).unwrap();
    let after = saved(&before, folder.path()).model;
    let place = |name| External::of(initializer(&after, name)).unwrap().unwrap();
    let offsets = ["small", "next", "large", "last"].map(|name| place(name).offset);
    let next = (INLINE_BELOW as u64 + 1).next_multiple_of(PACKING);
    let third = (next + LARGE).next_multiple_of(ALIGNMENT);
    assert_eq!(offsets, [0, next, third, third + LARGE]);
    for name in ["small", "next", "large", "last"] {
        assert_eq!(bytes(&after, name), bytes(&before.model, name), "{name}");
    }
}

#[test]
fn tensors_that_shared_bytes_go_on_sharing_them() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("d"), pattern(3000, 0)).unwrap();
    let range = [("location", "d"), ("offset", "5"), ("length", "2000")];
    let path = write(
        folder.path(),
        &model(vec![
            external("embedding", 2000, &range),
            external("head", 2000, &[range[1], range[2], range[0]]),
            external("other", 2000, &[("location", "d"), ("offset", "6")]),
        ]),
    );
    let after = saved(&load(&path).unwrap(), folder.path());
    let offset = |name| {
        External::of(initializer(&after.model, name))
            .unwrap()
            .unwrap()
            .offset
    };
    assert_eq!(offset("embedding"), offset("head"));
    assert_eq!(offset("other"), 2048);
    assert_eq!(
        fs::metadata(folder.path().join(data_file(folder.path())))
            .unwrap()
            .len(),
        2048 + 2000
    );
    assert_eq!(bytes(&after.model, "head"), pattern(3000, 0)[5..2005]);
    assert_eq!(bytes(&after.model, "other"), pattern(3000, 0)[6..2006]);
}

#[test]
fn without_large_tensors_there_is_no_data_file() {
    let folder = TempDir::new().unwrap();
    let before = load(&write(folder.path(), &model(vec![raw("w", vec![1])]))).unwrap();
    saved(&before, folder.path());
    let expected = ["model.onnx", "saved.onnx"].map(String::from);
    assert_eq!(entries(folder.path()), expected.into());
}

#[test]
fn saving_is_repeatable() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/genai-llama");
    let mut contents = Vec::new();
    let mut model = load(&fixture).unwrap();
    // The third is a copy of a copy.
    for _ in 0..3 {
        let folder = TempDir::new().unwrap();
        let copy = saved(&model, folder.path());
        // The maps hold the bytes after the folder is gone.
        contents.push(
            ["saved.onnx", &data_file(folder.path())]
                .map(|f| fs::read(folder.path().join(f)).unwrap()),
        );
        if contents.len() == 2 {
            model = copy;
        }
    }
    assert!(contents[0] == contents[1] && contents[1] == contents[2]);
}

/// The model is replaced under its own name; its maps keep the old bytes, and a later save must not take the new ones.
#[test]
fn a_model_can_be_saved_over_itself() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("model.onnx.data"), pattern(200_000, 0)).unwrap();
    let path = write(
        folder.path(),
        &model(vec![
            external(
                "w",
                100_000,
                &[("location", "model.onnx.data"), ("offset", "77")],
            ),
            raw("inline", pattern(100_000, 9)),
        ]),
    );
    let before = load(&path).unwrap();
    save(&before, &path).unwrap();
    for model in [load(&path).unwrap(), saved(&before, folder.path())] {
        assert_eq!(bytes(&model.model, "w"), pattern(200_000, 0)[77..100_077]);
        assert_eq!(bytes(&model.model, "inline"), pattern(100_000, 9));
    }
}

/// The name of the one data file of `saved.onnx`: it tells the content, so that no two models share a name.
fn data_file(folder: &Path) -> String {
    let names = entries(folder).into_iter();
    let data: Vec<String> = names.filter(|n| n.ends_with(".data")).collect();
    let [only] = data.as_slice() else {
        panic!("expected one data file: {data:?}");
    };
    let content = only
        .strip_prefix("saved.onnx.")
        .unwrap()
        .strip_suffix(".data");
    assert_eq!(content.unwrap().len(), 8, "{only}");
    only.clone()
}

/// In a hub's cache the blobs belong to every snapshot: only the link of the model is replaced, and the one of its data
/// file goes.
#[cfg(unix)]
#[test]
fn saving_over_links_leaves_what_they_lead_to() {
    use std::os::unix::fs::symlink;
    let cache = TempDir::new().unwrap();
    let blobs = cache.path().join("blobs");
    let snapshot = cache.path().join("snapshots/1f3a");
    fs::create_dir(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    let weights = external("w", 9, &[("location", "model.onnx.data"), ("offset", "1")]);
    let blob_contents = [
        ("c0de", "model.onnx", model(vec![weights]).encode_to_vec()),
        ("da7a", "model.onnx.data", pattern(10, 0)),
    ];
    for (blob, name, content) in &blob_contents {
        fs::write(blobs.join(blob), content).unwrap();
        symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    let path = snapshot.join("model.onnx");
    save(&load(&snapshot).unwrap(), &path).unwrap();
    for (blob, name, content) in &blob_contents {
        assert_eq!(&fs::read(blobs.join(blob)).unwrap(), content);
        assert!(!snapshot.join(name).is_symlink(), "{name}");
    }
    assert_eq!(bytes(&load(&path).unwrap().model, "w"), pattern(10, 0)[1..]);
}

#[cfg(unix)]
#[test]
fn whoever_may_read_new_files_may_read_a_saved_model() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let message = model(vec![raw("w", pattern(INLINE_BELOW, 0))]);
    saved(
        &load(&write(folder.path(), &message)).unwrap(),
        folder.path(),
    );
    let mode = |name: &str| {
        fs::metadata(folder.path().join(name))
            .unwrap()
            .permissions()
            .mode()
    };
    // `model.onnx` was written by the standard library, which leaves the mode to the umask.
    assert_eq!(mode("saved.onnx"), mode("model.onnx"));
    assert_eq!(mode(&data_file(folder.path())), mode("model.onnx"));
}

#[test]
fn a_type_newer_than_these_is_carried_along() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("d"), pattern(9, 0)).unwrap();
    let mut future = external("w", 3, &[("location", "d"), ("length", "5")]);
    future.data_type = Some(99);
    let before = load(&write(folder.path(), &model(vec![future]))).unwrap();
    let after = saved(&before, folder.path()).model;
    let place = External::of(initializer(&after, "w")).unwrap().unwrap();
    let found = after.range(initializer(&after, "w"), &place).unwrap();
    assert_eq!(found, pattern(9, 0)[..5]);
}

#[test]
fn a_failure_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let input = TempDir::new().unwrap();
    let large = raw("w", pattern(INLINE_BELOW, 0));
    let good = load(&write(input.path(), &model(vec![large.clone()]))).unwrap();

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(save(&good, &file.join("x.onnx")).is_err());
    assert!(save(&good, &folder.path().join("absent/x.onnx")).is_err());

    // A folder stands where the model should go.
    fs::create_dir(folder.path().join("x.onnx")).unwrap();
    assert!(save(&good, &folder.path().join("x.onnx")).is_err());

    // A tensor after the first names a file that was never loaded.
    let mut broken = load(&input.path().join("model.onnx")).unwrap();
    let lost = external("lost", 9, &[("location", "nowhere")]);
    broken.model.proto = model(vec![large, lost]);
    let error = save(&broken, &folder.path().join("z.onnx")).unwrap_err();
    assert_says(&error.to_string(), &["'lost'", "'nowhere'"]);

    // Text stays in the messages, and these are 2 GiB of it: 32 times the same 64 MiB.
    let texts = TensorProto {
        string_data: vec![Bytes::from(vec![b'x'; 64 << 20]); 32],
        ..tensor("texts", DataType::String, &[32])
    };
    let mut too_large = good;
    let graph = too_large.model.proto.graph.as_mut().unwrap();
    graph.initializer.push(texts);
    let error = save(&too_large, &folder.path().join("w.onnx")).unwrap_err();
    assert_says(&error.to_string(), &["w.onnx", "takes 2147483", "2 GiB"]);

    let expected = ["file", "x.onnx"].map(String::from);
    assert_eq!(entries(folder.path()), expected.into());
}

#[test]
fn output_names() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("old.onnx")).unwrap();
    let input = Path::new("in/decoder.onnx");
    let under = |name: &str| folder.path().join(name);
    assert_eq!(output_path(input, &under("new.onnx")), under("new.onnx"));
    assert_eq!(output_path(input, &under("new")), under("new/decoder.onnx"));
    assert_eq!(
        output_path(input, &under("new.onnx/")),
        under("new.onnx/decoder.onnx")
    );
    assert_eq!(
        output_path(input, &under("old.onnx")),
        under("old.onnx/decoder.onnx")
    );
    assert_eq!(output_path(input, folder.path()), under("decoder.onnx"));
}
