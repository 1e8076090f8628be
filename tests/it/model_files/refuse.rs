//! What does not load. Every refusal names the tensor, and what it names.

use super::*;

#[test]
fn locations_outside_the_folder_are_refused_wherever_the_tensor_is() {
    let outer = TempDir::new().unwrap();
    let folder = outer.path().join("model");
    fs::create_dir_all(folder.join("sub")).unwrap();
    let secret = outer.path().join("secret");
    fs::write(&secret, pattern(9, 0)).unwrap();
    let absolute = secret.to_str().unwrap().to_owned();
    let mut locations = vec![
        (absolute.as_str(), "absolute"),
        ("../secret", "leaves the model's folder"),
        ("sub/../../secret", "leaves the model's folder"),
        ("sub\\..\\..\\secret", "backslash"),
        ("C:secret", "drive letter"),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
        std::os::unix::fs::symlink("..", folder.join("up")).unwrap();
        locations.push(("link", "outside the model's folder"));
        locations.push(("up/secret", "outside the model's folder"));
    }
    for (location, reason) in locations {
        let (_, places) = everywhere(|name| tensor(name, DataType::Uint8, &[0]));
        for place in places {
            let (message, _) = everywhere(|name| match name == place {
                true => external(name, 9, &[("location", location)]),
                false => tensor(name, DataType::Uint8, &[0]),
            });
            let refused = refusal(&write(&folder, &message));
            assert_says(
                &refused,
                &[&format!("'{place}'"), &format!("'{location}'"), reason],
            );
        }
    }
}

#[test]
fn senseless_external_data_is_refused() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("d"), pattern(100, 0)).unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    type Case = (
        &'static [(&'static str, &'static str)],
        &'static [&'static str],
    );
    let cases: &[Case] = &[
        (&[], &["location", "name of a file"]),
        (&[("location", "")], &["location", "name of a file"]),
        (
            &[("location", "d"), ("offset", "ten")],
            &["offset", "ten", "number"],
        ),
        (&[("location", "d"), ("offset", "-1")], &["offset", "-1"]),
        (&[("location", "d"), ("length", "1e3")], &["length", "1e3"]),
        (
            &[("location", "d"), ("length", "18446744073709551616")],
            &["length", "18446744073709551616"],
        ),
        (
            &[("location", "d"), ("location", "e")],
            &["location", "only once"],
        ),
        (
            &[("location", "missing")],
            &["missing", "No such file", "get it too"],
        ),
        (&[("location", "folder")], &["folder", "not a regular file"]),
        (
            &[("location", "d"), ("offset", "91")],
            &["'d' has 100 bytes", "91 to 101", "truncated"],
        ),
        (
            &[("location", "d"), ("offset", "18446744073709551615")],
            &["'d' has 100 bytes", "truncated"],
        ),
        (
            &[("location", "d"), ("length", "18446744073709551615")],
            &["'d' has 100 bytes", "truncated"],
        ),
    ];
    for (given, words) in cases {
        let refused = refusal(&write(
            folder.path(),
            &model(vec![external("layers.3.w", 10, given)]),
        ));
        assert_says(&refused, &["'layers.3.w'", "model.onnx"]);
        assert_says(&refused, words);
    }
    let shapes: [&[i64]; 4] = [&[-1], &[2, -3, -4], &[i64::MAX, 3], &[1 << 32, 1 << 31, 2]];
    for dims in shapes {
        let tensor = TensorProto {
            dims: dims.to_vec(),
            ..external("layers.3.w", 0, &[("location", "d")])
        };
        let refused = refusal(&write(folder.path(), &model(vec![tensor])));
        assert_says(
            &refused,
            &["'layers.3.w'", "model.onnx", &format!("{dims:?}")],
        );
    }
}

/// A model whose graphs lie in each other, `depth` of them.
fn nested_graphs(depth: usize) -> Vec<u8> {
    // From the inside out, so backwards; a graph is in an attribute (field 6) of a node (5) of a graph (1).
    let mut backwards = Vec::new();
    let mut wrap = |key: u8| {
        let mut length = Vec::new();
        prost::encoding::encode_varint(backwards.len() as u64, &mut length);
        backwards.extend(length.into_iter().rev());
        backwards.push(key);
    };
    for _ in 1..depth {
        [0x32, 0x2a, 0x0a].into_iter().for_each(&mut wrap);
    }
    wrap(0x3a);
    backwards.reverse();
    backwards
}

#[test]
fn what_is_no_model_is_refused() {
    let folder = TempDir::new().unwrap();
    let whole = model(vec![raw("w", pattern(1000, 0))]).encode_to_vec();
    let deep = nested_graphs(10_000);
    let loads = folder.path().join("not so deep.onnx");
    fs::write(&loads, nested_graphs(20)).unwrap();
    load(&loads).unwrap();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("text", b"not a model, but a letter\n".to_vec()),
        ("zeros", vec![0; 4096]),
        ("noise", pattern(4096, 200)),
        ("truncated", whole[..whole.len() - 1].to_vec()),
        ("half", whole[..whole.len() / 2].to_vec()),
        (
            "no graph",
            ModelProto {
                ir_version: Some(8),
                ..ModelProto::default()
            }
            .encode_to_vec(),
        ),
        // A graph that says it has 2^62 bytes, and one whose first tensor has as many packed numbers.
        (
            "hostile length",
            vec![0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f],
        ),
        (
            "hostile list",
            vec![
                0x3a, 0x0d, 0x2a, 0x0b, 0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f,
                0x00,
            ],
        ),
        ("deep", deep),
    ];
    for (name, content) in cases {
        let path = folder.path().join(format!("{name}.onnx"));
        fs::write(&path, content).unwrap();
        assert_says(
            &refusal(&path),
            &["not an ONNX model", &format!("{name}.onnx")],
        );
    }
    assert_says(
        &refusal(&folder.path().join("absent.onnx")),
        &["absent.onnx"],
    );
}

/// Neither waits for a writer nor reads without an end.
#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    for path in [&pipe, Path::new("/dev/zero")] {
        assert_says(&refusal(path), &["not a regular file"]);
    }
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("zero")).unwrap();
    for (location, reason) in [
        ("pipe", "not a regular file"),
        ("zero", "outside the model's folder"),
    ] {
        let tensor = external("w", 9, &[("location", location)]);
        let path = write(folder.path(), &model(vec![tensor]));
        assert_says(&refusal(&path), &["'w'", location, reason]);
    }
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("zero.onnx")).unwrap();
    assert_says(
        &refusal(&folder.path().join("zero.onnx")),
        &["zero.onnx", "not a regular file"],
    );
}
