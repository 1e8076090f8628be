//! Random models: whatever types, lengths and places, each tensor has the bytes it had.

use std::collections::BTreeMap;

use gqa2mla::validate::scenario::Random;

use super::*;

const MODELS: u64 = 60;
const DATA_FILES: [&str; 3] = ["a.data", "b.data", "sub/c.data"];
const DATA_LENGTH: usize = 200_000;

fn below(random: &mut Random, limit: usize) -> usize {
    (random.next_u64() % limit as u64) as usize
}

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[below(random, from.len())]
}

/// Moves the bytes of a raw tensor to the field that its type has for them.
fn into_typed_field(mut tensor: TensorProto) -> TensorProto {
    let bytes = tensor.raw_data.take().unwrap();
    let halves = || bytes.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match DataType::try_from(tensor.data_type()).unwrap() {
        DataType::Float => {
            let floats = bytes
                .chunks(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            tensor.float_data = floats.collect();
        }
        DataType::Int64 => {
            let ints = bytes
                .chunks(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap()));
            tensor.int64_data = ints.collect();
        }
        DataType::Float16 => tensor.int32_data = halves().map(i32::from).collect(),
        _ => tensor.int32_data = bytes.iter().map(|&b| i32::from(b)).collect(),
    }
    tensor
}

/// A tensor and its bytes; external ones are ranges of `files`.
fn random_tensor(random: &mut Random, name: &str, files: &[Vec<u8>]) -> (TensorProto, Vec<u8>) {
    let (data_type, width) = pick(
        random,
        &[
            (DataType::Float, 4),
            (DataType::Int64, 8),
            (DataType::Float16, 2),
            (DataType::Uint8, 1),
        ],
    );
    let edge = INLINE_BELOW / width;
    let lengths = [0, 1, 3, 100, edge - 1, edge, edge + 1];
    let length = pick(random, &lengths);
    let size = length * width;
    let dims = match length {
        1 => vec![],
        _ => vec![length as i64],
    };
    let file = below(random, files.len());
    // Ranges that overlap, coincide and end where the file ends all come up.
    let offset = pick(random, &[0, 1, 4096, 65_537, DATA_LENGTH - size]);
    let bytes = files[file][offset..offset + size].to_vec();
    let raw = TensorProto {
        raw_data: Some(bytes.clone().into()),
        ..tensor(name, data_type, &dims)
    };
    let made = match below(random, 4) {
        0 => raw,
        1 => into_typed_field(raw),
        _ => {
            let (offset_text, size_text) = (offset.to_string(), size.to_string());
            let mut given = vec![("location", DATA_FILES[file])];
            if offset != 0 || below(random, 2) == 0 {
                given.push(("offset", &offset_text));
            }
            if below(random, 2) == 0 {
                given.insert(below(random, given.len()), ("length", &size_text));
            }
            let place = external(name, 0, &given);
            TensorProto {
                data_type: raw.data_type,
                dims: raw.dims,
                ..place
            }
        }
    };
    (made, bytes)
}

fn hold(random: &mut Random, graph: &mut GraphProto, tensor: TensorProto) {
    let attribute = match below(random, 4) {
        0 => AttributeProto {
            t: Some(tensor),
            ..AttributeProto::default()
        },
        1 => {
            let mut inner = GraphProto::default();
            hold(random, &mut inner, tensor);
            AttributeProto {
                g: Some(inner),
                ..AttributeProto::default()
            }
        }
        _ => return graph.initializer.push(tensor),
    };
    graph.node.push(node(attribute));
}

/// The bytes of all tensors by name; external ones have to be placed as promised.
fn contents(model: &Model, external_as_saved: bool) -> BTreeMap<String, Bytes> {
    let mut found = BTreeMap::new();
    visit_tensors(&mut model.proto.clone(), &mut |tensor,
                                                  _|
     -> Result<(), String> {
        let bytes = model.tensor_bytes(tensor).unwrap();
        if external_as_saved {
            let keys: Vec<&str> = tensor.external_data.iter().map(|e| e.key()).collect();
            match External::of(tensor).unwrap() {
                None => assert!(bytes.len() < INLINE_BELOW, "{}", tensor.name()),
                Some(place) => {
                    assert_eq!(keys, ["location", "offset", "length"]);
                    let large = place.length >= LARGE;
                    let alignment = if large { ALIGNMENT } else { PACKING };
                    assert_eq!(place.offset % alignment, 0);
                    assert_eq!(place.length, bytes.len() as u64);
                }
            }
        }
        found.insert(tensor.name().to_owned(), bytes);
        Ok(())
    })
    .unwrap();
    found
}

#[test]
fn random_models_keep_the_bytes_of_every_tensor() {
    let (mut moved, mut inline) = (0, 0);
    for seed in 0..MODELS {
        let random = &mut Random::new(seed);
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        let files: Vec<Vec<u8>> = (0..DATA_FILES.len())
            .map(|file| pattern(DATA_LENGTH, 17 * file + seed as usize))
            .collect();
        for (name, bytes) in DATA_FILES.iter().zip(&files) {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        let mut message = model(vec![]);
        let mut expected = BTreeMap::new();
        for number in 0..1 + below(random, 12) {
            let name = number.to_string();
            let (tensor, bytes) = random_tensor(random, &name, &files);
            hold(random, message.graph.as_mut().unwrap(), tensor);
            expected.insert(name, Bytes::from(bytes));
        }
        let before = load(&write(folder.path(), &message)).unwrap();
        assert!(contents(&before.model, false) == expected, "seed {seed}");

        let out = TempDir::new().unwrap();
        let copy = saved(&before, out.path());
        assert!(contents(&copy.model, true) == expected, "seed {seed}");
        let again = saved(&copy, out.path());
        assert!(contents(&again.model, true) == expected, "seed {seed}");
        let has_data = !copy.sources.is_empty();
        let locations = again.sources.keys().cloned();
        assert_eq!(
            entries(out.path()),
            locations.chain(["saved.onnx".to_owned()]).collect()
        );
        moved += usize::from(has_data);
        inline += usize::from(!has_data);
    }
    // Both kinds of model came up.
    assert!(moved > 10 && inline > 0, "{moved} {inline}");
}
