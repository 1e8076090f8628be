//! Models on disk: what loads, what is refused and in which words, and what a saved model looks like.

#[path = "model_files/bytes.rs"]
mod bytes_of_a_tensor;
#[path = "model_files/checked.rs"]
mod checked;
#[path = "model_files/killed.rs"]
mod killed;
#[path = "model_files/load.rs"]
mod loading;
#[path = "model_files/random.rs"]
mod random;
#[path = "model_files/refuse.rs"]
mod refusals;
#[path = "model_files/save.rs"]
mod saving;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use gqa2mla::files::load::{LoadedModel, load};
use gqa2mla::files::save::{ALIGNMENT, INLINE_BELOW, LARGE, PACKING, output_path, save};
use gqa2mla_passes::onnx::stored::{External, Model, TensorStorage, visit_tensors};
use gqa2mla_passes::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, TrainingInfoProto,
    tensor_proto::{DataLocation, DataType},
};
use prost::Message;
use tempfile::TempDir;

fn tensor(name: &str, data_type: DataType, dims: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(data_type as i32),
        dims: dims.to_vec(),
        ..TensorProto::default()
    }
}

fn raw(name: &str, bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        raw_data: Some(bytes.clone().into()),
        ..tensor(name, DataType::Uint8, &[bytes.len() as i64])
    }
}

/// A tensor of `length` bytes whose `external_data` holds `entries`.
fn external(name: &str, length: i64, entries: &[(&str, &str)]) -> TensorProto {
    let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
        key: Some((*key).to_owned()),
        value: Some((*value).to_owned()),
    };
    TensorProto {
        data_location: Some(DataLocation::External as i32),
        external_data: entries.iter().map(entry).collect(),
        ..tensor(name, DataType::Uint8, &[length])
    }
}

fn model(initializer: Vec<TensorProto>) -> ModelProto {
    ModelProto {
        ir_version: Some(10),
        graph: Some(GraphProto {
            initializer,
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

fn node(attribute: AttributeProto) -> NodeProto {
    NodeProto {
        attribute: vec![attribute],
        ..NodeProto::default()
    }
}

fn sparse(values: TensorProto, indices: TensorProto) -> SparseTensorProto {
    SparseTensorProto {
        values: Some(values),
        indices: Some(indices),
        dims: vec![9],
    }
}

/// A model that holds a tensor in every place that can hold one; `make` is given their names.
fn everywhere(make: impl Fn(&str) -> TensorProto) -> (ModelProto, Vec<&'static str>) {
    let attribute = AttributeProto::default;
    let inner = GraphProto {
        initializer: vec![make("branch")],
        ..GraphProto::default()
    };
    let listed = GraphProto {
        sparse_initializer: vec![sparse(make("listed values"), make("listed indices"))],
        ..GraphProto::default()
    };
    let training = GraphProto {
        initializer: vec![make("training")],
        ..GraphProto::default()
    };
    let step = GraphProto {
        initializer: vec![make("step")],
        ..GraphProto::default()
    };
    let mut model = model(vec![make("weight")]);
    let graph = model.graph.as_mut().unwrap();
    graph.sparse_initializer = vec![sparse(make("values"), make("indices"))];
    graph.node = vec![node(AttributeProto {
        t: Some(make("constant")),
        tensors: vec![make("in a list")],
        g: Some(inner),
        graphs: vec![listed],
        sparse_tensor: Some(sparse(make("node values"), make("node indices"))),
        sparse_tensors: vec![sparse(make("more values"), make("more indices"))],
        ..attribute()
    })];
    model.functions = vec![FunctionProto {
        node: vec![node(AttributeProto {
            t: Some(make("in a function")),
            ..attribute()
        })],
        attribute_proto: vec![AttributeProto {
            t: Some(make("default of a function")),
            ..attribute()
        }],
        ..FunctionProto::default()
    }];
    model.training_info = vec![TrainingInfoProto {
        initialization: Some(training),
        algorithm: Some(step),
        ..TrainingInfoProto::default()
    }];
    let names = "weight,values,indices,constant,in a list,branch,listed values,listed indices,node values,node indices,\
                 more values,more indices,in a function,default of a function,training,step";
    (model, names.split(',').collect())
}

fn write(folder: &Path, model: &ModelProto) -> PathBuf {
    let path = folder.join("model.onnx");
    fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

/// Bytes without a period that divides an alignment.
fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|i| ((i + seed) % 251) as u8).collect()
}

fn initializer<'a>(model: &'a Model, name: &str) -> &'a TensorProto {
    let graph = model.proto.graph.as_ref().unwrap();
    let found = graph.initializer.iter().find(|t| t.name() == name);
    found.unwrap_or_else(|| panic!("no tensor '{name}'"))
}

fn bytes(model: &Model, name: &str) -> Bytes {
    model.tensor_bytes(initializer(model, name)).unwrap()
}

fn refusal(path: &Path) -> String {
    match load(path) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{} loads", path.display()),
    }
}

fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "'{word}' is missing in: {message}");
    }
}

fn entries(folder: &Path) -> BTreeSet<String> {
    let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    fs::read_dir(folder).unwrap().map(name).collect()
}

/// `model` with the bytes of external tensors in place of their entries, apart from keys that only some exporter knows.
fn inlined(model: &Model) -> ModelProto {
    let mut proto = model.proto.clone();
    visit_tensors(&mut proto, &mut |tensor, _| -> Result<(), String> {
        if External::of(tensor).unwrap().is_some() {
            tensor.raw_data = Some(model.tensor_bytes(tensor).unwrap());
            tensor.data_location = None;
            let of_place = |key: &str| matches!(key, "location" | "offset" | "length" | "checksum");
            tensor.external_data.retain(|e| !of_place(e.key()));
        }
        Ok(())
    })
    .unwrap();
    proto
}

fn saved(model: &LoadedModel, folder: &Path) -> LoadedModel {
    let path = folder.join("saved.onnx");
    save(model, &path).unwrap();
    load(&path).unwrap()
}
