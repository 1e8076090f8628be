//! Benchmarks of type inference and of the whole analysis against the number of nodes. The graph consists of copies of
//! one exported model.
//!
//! Compare the medians of the rows: twice the nodes should take twice the time.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;

use divan::Bencher;
use gqa2mla_passes::facts::scoped::ScopeFacts;
use gqa2mla_passes::inspect;
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::onnx::{GraphProto, ModelProto};
use gqa2mla_passes::operators::Operators;
use prost::Message;

fn main() {
    divan::main();
}

/// Numbers of layers. The exported model has two layers and 625 nodes, so these are 625, 2,500 and 20,000 nodes.
const LAYERS: [usize; 3] = [2, 8, 64];

/// Inference of types and shapes alone.
#[divan::bench(args = LAYERS, max_time = 3)]
fn infer(bencher: Bencher, layers: usize) {
    let model = grown(layers);
    let graph = model.proto.graph.as_ref().unwrap();
    bencher
        .counter(divan::counter::ItemsCount::new(graph.node.len()))
        .bench(|| ScopeFacts::infer(&model, graph, &Operators::default().rules()));
}

#[divan::bench(args = LAYERS, max_time = 3)]
fn understand(bencher: Bencher, layers: usize) {
    let model = grown(layers);
    bencher
        .counter(divan::counter::ItemsCount::new(
            model.proto.graph.as_ref().unwrap().node.len(),
        ))
        .bench(|| {
            let found = inspect(&model).unwrap();
            assert_eq!(found.sites.len(), layers);
        });
}

fn grown(layers: usize) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/optimum-llama/model.onnx");
    let mut proto = ModelProto::decode(&*std::fs::read(path).unwrap()).unwrap();
    let one = proto.graph.take().unwrap();
    let mut all = GraphProto::default();
    for copy in 0..layers / 2 {
        add(&mut all, &one, &format!("copy{copy}/"));
    }
    proto.graph = Some(all);
    Model {
        proto,
        files: BTreeMap::new(),
    }
}

fn add(all: &mut GraphProto, one: &GraphProto, prefix: &str) {
    let name = |text: &str| match text {
        "" => String::new(),
        text => format!("{prefix}{text}"),
    };
    let mut one = one.clone();
    for node in &mut one.node {
        node.input = node.input.iter().map(|v| name(v)).collect();
        node.output = node.output.iter().map(|v| name(v)).collect();
    }
    for info in one
        .input
        .iter_mut()
        .chain(&mut one.output)
        .chain(&mut one.value_info)
    {
        info.name = Some(name(info.name()));
    }
    for tensor in &mut one.initializer {
        tensor.name = Some(name(tensor.name()));
    }
    all.node.extend(one.node);
    all.input.extend(one.input);
    all.output.extend(one.output);
    all.value_info.extend(one.value_info);
    all.initializer.extend(one.initializer);
}
