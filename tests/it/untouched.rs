//! What a rewrite leaves alone, and that it does the same every time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use crate::common::{all_nodes, command, fixture, loaded, recognised_fixtures, rewritten};
use gqa2mla_passes::RewriteOptions;
use gqa2mla_passes::graph::captured;
use gqa2mla_passes::graph::subgraphs;
use gqa2mla_passes::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    SparseTensorProto, StringStringEntryProto, TensorAnnotation, TensorProto,
    attribute_proto::AttributeType,
};

/// The model's files in `folder`, by name.
fn bytes_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    files
        .map(|f| {
            (
                f.file_name().into_string().unwrap(),
                fs::read(f.path()).unwrap(),
            )
        })
        .collect()
}

#[test]
fn the_same_input_gives_the_same_bytes_whatever_the_number_of_threads() {
    let mut with_data = 0;
    for name in recognised_fixtures() {
        for rank in [None, Some("8")] {
            let outputs: Vec<_> = ["1", "2", "1"]
                .into_iter()
                .map(|threads| {
                    let folder = tempfile::tempdir().unwrap();
                    let out = folder.path().join("model.onnx");
                    let mut command = command();
                    command
                        .env("RAYON_NUM_THREADS", threads)
                        .arg("rewrite")
                        .arg(fixture(&name));
                    command.arg("--no-validate").arg("-o").arg(&out);
                    command.args(rank.map(|r| ["--rank", r]).into_iter().flatten());
                    let ran = crate::common::Ran::from(command.output().unwrap());
                    assert_eq!(ran.code, 0, "{name}: {ran:?}");
                    bytes_of(folder.path())
                })
                .collect();
            assert!(
                outputs[0].contains_key("model.onnx"),
                "{name}: {:?}",
                outputs[0].keys()
            );
            with_data += usize::from(outputs[0].keys().any(|name| name.ends_with(".data")));
            // Not assert_eq: nobody wants to read the bytes.
            assert!(
                outputs[0] == outputs[1],
                "{name}: another number of threads gives another file"
            );
            assert!(
                outputs[0] == outputs[2],
                "{name}: a second run gives another file"
            );
        }
    }
    assert!(
        with_data > 0,
        "no fixture has a data file, so none was compared"
    );
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value.to_owned()),
    }
}

/// Everything that exporters and users attach to a model, attached everywhere.
fn decorate(proto: &mut ModelProto) {
    proto.doc_string = Some("what the user wrote".to_owned());
    proto.domain = Some("org.example".to_owned());
    proto.model_version = Some(7);
    proto
        .metadata_props
        .push(entry("tokenizer", "\u{65e5}\u{672c}"));
    proto.opset_import.push(OperatorSetIdProto {
        domain: Some("org.example".to_owned()),
        version: Some(1),
    });
    proto.functions.push(FunctionProto {
        name: Some("Unused".to_owned()),
        domain: Some("org.example".to_owned()),
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        node: vec![NodeProto {
            input: vec!["x".to_owned()],
            output: vec!["y".to_owned()],
            op_type: Some("Identity".to_owned()),
            ..NodeProto::default()
        }],
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(18),
        }],
        metadata_props: vec![entry("why", "nobody calls it")],
        ..FunctionProto::default()
    });
    let graph = proto.graph.as_mut().unwrap();
    graph.doc_string = Some("the graph's own".to_owned());
    graph.metadata_props.push(entry("from", "a test"));
    graph.sparse_initializer.push(SparseTensorProto {
        values: Some(TensorProto {
            name: Some("sparse".to_owned()),
            dims: vec![1],
            data_type: Some(1),
            float_data: vec![1.5],
            ..TensorProto::default()
        }),
        indices: Some(TensorProto {
            dims: vec![1],
            data_type: Some(7),
            int64_data: vec![3],
            ..TensorProto::default()
        }),
        dims: vec![8],
    });
    graph.quantization_annotation.push(TensorAnnotation {
        tensor_name: Some("logits".to_owned()),
        quant_parameter_tensor_names: vec![entry("SCALE_TENSOR", "sparse")],
    });
    for (number, node) in graph.node.iter_mut().enumerate() {
        node.doc_string = Some(format!("node {number}"));
        node.metadata_props
            .push(entry("number", &number.to_string()));
        node.attribute.push(AttributeProto {
            name: Some("_unknown_to_everybody".to_owned()),
            r#type: Some(AttributeType::Float as i32),
            f: Some(number as f32),
            ..AttributeProto::default()
        });
    }
    // What nobody reads is the user's business, not that of a rewrite.
    graph.node.push(NodeProto {
        input: vec!["logits".to_owned()],
        output: vec!["read by nobody".to_owned()],
        op_type: Some("Neg".to_owned()),
        ..NodeProto::default()
    });
    graph.initializer.push(TensorProto {
        name: Some("read by nobody either".to_owned()),
        dims: vec![1],
        data_type: Some(1),
        float_data: vec![2.5],
        ..TensorProto::default()
    });
    for (number, tensor) in graph.initializer.iter_mut().enumerate() {
        tensor.doc_string = Some(format!("tensor {number}"));
        tensor
            .metadata_props
            .push(entry("number", &number.to_string()));
    }
    for info in graph
        .input
        .iter_mut()
        .chain(&mut graph.output)
        .chain(&mut graph.value_info)
    {
        info.doc_string = Some(format!("value {}", info.name()));
        info.metadata_props.push(entry("value", info.name()));
    }
}

/// Every name that something in `graph` reads, outputs included.
fn read(graph: &GraphProto) -> HashSet<&str> {
    let mut names: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
    for node in &graph.node {
        names.extend(node.input.iter().map(String::as_str));
        names.extend(subgraphs(node).flat_map(captured));
    }
    names
}

/// Whether `wanted` are all in `all`, in the same order.
fn in_order<T: PartialEq>(wanted: &[&T], all: &[T]) -> bool {
    let mut rest = all.iter();
    wanted.iter().all(|one| rest.any(|other| other == *one))
}

#[test]
fn what_is_not_replaced_comes_out_as_it_went_in() {
    for name in [
        "dynamo18-llama",
        "optimum-qwen2",
        "dynamo23-llama",
        "genai-qwen3",
    ] {
        let mut model = loaded(name);
        decorate(&mut model.model.proto);
        let before = model.model.proto.clone();
        rewritten(&mut model, RewriteOptions::default()).unwrap();
        let mut after = model.model.proto;
        let (old, new) = (before.graph.clone().unwrap(), after.graph.take().unwrap());
        assert_eq!(
            after,
            ModelProto {
                graph: None,
                ..before
            },
            "{name}: the model around the graph"
        );
        let around = |g: &GraphProto| GraphProto {
            node: Vec::new(),
            initializer: Vec::new(),
            input: Vec::new(),
            output: Vec::new(),
            value_info: Vec::new(),
            ..g.clone()
        };
        assert_eq!(
            around(&new),
            around(&old),
            "{name}: what the graph holds besides nodes and values"
        );

        let new_by_output: HashMap<&str, &NodeProto> = new
            .node
            .iter()
            .flat_map(|n| n.output.iter().map(move |o| (o.as_str(), n)))
            .collect();
        let (kept, gone): (Vec<_>, Vec<_>) = old.node.iter().partition(|n| new.node.contains(n));
        assert!(
            in_order(&kept, &new.node),
            "{name}: the nodes that stay have another order"
        );
        let needed = read(&new);
        for node in &gone {
            for output in node.output.iter().filter(|o| needed.contains(o.as_str())) {
                // Whoever takes a node's place says where it comes from: it belongs to the latent attention.
                let taker = new_by_output
                    .get(output.as_str())
                    .unwrap_or_else(|| panic!("{name}: {output} is gone"));
                let of_the_rewrite = taker.input.iter().any(|i| {
                    i.contains("/mla/")
                        || new_by_output
                            .get(i.as_str())
                            .is_some_and(|n| !kept.contains(n))
                });
                assert!(of_the_rewrite, "{name}: {output} is made by {taker:?}");
            }
        }
        assert_eq!(kept.last().unwrap().output, ["read by nobody"], "{name}");
        // Two attentions and their shapes, out of hundreds of nodes.
        assert!(
            !gone.is_empty() && kept.len() * 2 > old.node.len(),
            "{name}: {} of {} nodes stay",
            kept.len(),
            old.node.len()
        );

        let (kept, gone): (Vec<_>, Vec<_>) = old
            .initializer
            .iter()
            .partition(|t| new.initializer.contains(t));
        assert!(
            in_order(&kept, &new.initializer),
            "{name}: the initializers that stay have another order"
        );
        for tensor in &gone {
            assert!(
                !needed.contains(tensor.name()),
                "{name}: initializer {} is gone or changed",
                tensor.name()
            );
        }
        assert!(
            kept.iter().any(|t| t.data_type() == 1),
            "{name}: the weights stay"
        );

        let last = kept.last().unwrap();
        assert_eq!(last.name(), "read by nobody either", "{name}");

        // Inputs and outputs keep their order, names and notes; the caches alone have other sizes.
        for (old, new) in [(&old.input, &new.input), (&old.output, &new.output)] {
            assert_eq!(old.len(), new.len(), "{name}");
            for (old, new) in old.iter().zip(new) {
                let mut expected = old.clone();
                if old.name().contains(".key") || old.name().contains(".value") {
                    assert_ne!(old.r#type, new.r#type, "{name}: {}", old.name());
                    expected.r#type.clone_from(&new.r#type);
                }
                assert_eq!(*new, expected, "{name}: {}", old.name());
            }
        }
        // Notes on inner values stay as long as the value does.
        let made: HashSet<&str> = all_nodes(&new)
            .iter()
            .flat_map(|n| n.output.iter().map(String::as_str))
            .collect();
        let still: Vec<_> = old
            .value_info
            .iter()
            .filter(|v| made.contains(v.name()))
            .collect();
        for info in &still {
            let now = new.value_info.iter().find(|v| v.name() == info.name());
            assert!(now.is_some(), "{name}: the type of {} is lost", info.name());
            assert_eq!(
                now.unwrap().metadata_props,
                info.metadata_props,
                "{name}: {}",
                info.name()
            );
        }
    }
}
