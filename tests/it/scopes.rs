//! Attention inside functions, branches and loops.

use crate::common::{SINGLE, compared, in_ort, loaded, rewritten};
use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::graph::build::{int64_vector, node};
use gqa2mla_passes::onnx::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_proto::DataType, type_proto,
};
use gqa2mla_passes::{RankPlan, RewriteError, RewriteOptions, inspect};

fn graph(model: &mut LoadedModel) -> &mut GraphProto {
    model.model.proto.graph.as_mut().unwrap()
}

fn exact(before: &LoadedModel, after: &LoadedModel) {
    let comparison = compared(before, after, in_ort(SINGLE)).unwrap();
    assert!(comparison.passed(), "{:e}", comparison.max_ratio());
}

/// The whole decoder as one model-local function, its weights as arguments.
fn in_a_function() -> LoadedModel {
    let mut model = loaded("dynamo18-llama");
    let opsets = model.model.proto.opset_import.clone();
    let g = graph(&mut model);
    let inputs: Vec<String> = g
        .input
        .iter()
        .map(|v| v.name().to_owned())
        .chain(g.initializer.iter().map(|t| t.name().to_owned()))
        .collect();
    let outputs: Vec<String> = g.output.iter().map(|v| v.name().to_owned()).collect();
    let nodes = std::mem::take(&mut g.node);
    g.value_info.clear();
    g.node.push(NodeProto {
        domain: Some("local".to_owned()),
        op_type: Some("Decoder".to_owned()),
        name: Some("decoder".to_owned()),
        input: inputs.clone(),
        output: outputs.clone(),
        ..NodeProto::default()
    });
    let proto = &mut model.model.proto;
    proto.functions.push(FunctionProto {
        name: Some("Decoder".to_owned()),
        domain: Some("local".to_owned()),
        input: inputs,
        output: outputs,
        node: nodes,
        opset_import: opsets,
        ..FunctionProto::default()
    });
    proto.opset_import.push(OperatorSetIdProto {
        domain: Some("local".to_owned()),
        version: Some(1),
    });
    model
}

#[test]
fn a_function_is_rewritten_where_it_is_called() {
    let before = in_a_function();
    let mut after = in_a_function();
    let done = rewritten(&mut after, RewriteOptions::default()).unwrap();
    assert_eq!(done.sites.len(), 2);
    exact(&before, &after);
    // Nothing calls it any more.
    assert!(after.model.proto.functions.is_empty());
}

#[test]
fn a_function_without_attention_stays() {
    let mut model = loaded("dynamo18-llama");
    let function = FunctionProto {
        name: Some("Nothing".to_owned()),
        domain: Some("local".to_owned()),
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        node: vec![node("Identity", "same", &["x"], &["y"])],
        opset_import: model.model.proto.opset_import.clone(),
        ..FunctionProto::default()
    };
    model.model.proto.functions.push(function.clone());
    rewritten(&mut model, RewriteOptions::default()).unwrap();
    assert_eq!(model.model.proto.functions, [function]);
}

fn branches(model: &mut LoadedModel) -> Vec<&mut GraphProto> {
    let g = graph(model);
    let choice = g.node.iter_mut().find(|n| n.op_type() == "If").unwrap();
    choice
        .attribute
        .iter_mut()
        .filter_map(|a| a.g.as_mut())
        .collect()
}

#[test]
fn branches_that_share_a_cache_share_its_factors() {
    let mut model = loaded("merged-llama");
    let options = RewriteOptions {
        ranks: RankPlan::Uniform(16),
        ..RewriteOptions::default()
    };
    rewritten(&mut model, options).unwrap();
    let g = graph(&mut model);
    let factors = g
        .initializer
        .iter()
        .filter(|t| t.name().ends_with("/w_dk"))
        .count();
    assert_eq!(factors, 2, "one for each layer, not for each branch");
    for branch in branches(&mut model) {
        let reads = |name: &str| {
            branch
                .node
                .iter()
                .flat_map(|n| &n.input)
                .any(|i| i.ends_with(name))
        };
        assert!(reads("/w_dk") && reads("/w_uv"));
    }
}

#[test]
fn branches_are_one_layer_in_what_is_told() {
    let place = crate::common::folder();
    let (model, out) = (
        crate::common::fixture("merged-llama"),
        place.path().join("out.onnx"),
    );
    let ran = crate::common::with(&[&"inspect", &model]);
    let told = &ran.stdout;
    assert!(
        told.contains("2 of 2 attentions recognised, 512 bytes of cache a token"),
        "{told}"
    );
    assert!(
        told.contains("in the then_branch of If 'optimum::if'"),
        "{told}"
    );
    let ran = crate::common::with(&[&"rewrite", &model, &"-o", &out]);
    for line in [
        "2 attentions rewritten",
        "cache: 512 -> 512 bytes a token",
        "measured cache: 512 -> 512 bytes a token",
    ] {
        assert!(ran.stdout.contains(line), "{ran:?}");
    }
}

/// A cache is made by both branches. Where only one of them is recognised, neither may change.
#[test]
fn half_an_if_is_refused() {
    for which in [0, 1] {
        let mut model = loaded("merged-llama");
        let branch = branches(&mut model).remove(which);
        let product = branch
            .node
            .iter()
            .position(|n| n.op_type() == "Softmax")
            .unwrap();
        let product = (product..branch.node.len())
            .find(|&i| branch.node[i].op_type() == "MatMul")
            .unwrap();
        let value = branch.node[product].input[1].clone();
        branch.node[product].input[1] = "bent".to_owned();
        branch
            .node
            .insert(product, node("Tanh", "bent", &[&value], &["bent"]));
        let found = inspect(&model.model).unwrap();
        let codes: Vec<&str> = found.rejects.iter().map(|r| r.reason.code()).collect();
        assert!(codes.contains(&"other-branch"), "{codes:?}");
        assert_eq!(found.sites.len(), 2, "the second layer, in both branches");
        let mut after = loaded("merged-llama");
        after.model = model.model.clone();
        match rewritten(&mut after, RewriteOptions::default()) {
            Err(RewriteError::Partial { .. }) => {}
            other => panic!("{other:?}"),
        }
        let partial = RewriteOptions {
            allow_partial: true,
            ..RewriteOptions::default()
        };
        rewritten(&mut after, partial).unwrap();
        exact(&model, &after);
    }
}

fn scalar(name: &str, kind: DataType, bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(kind as i32),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    }
}

fn value(name: &str, kind: DataType, shape: Option<TensorShapeProto>) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(kind as i32),
                shape,
            })),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// A decoder without a cache as the body of a loop that runs once.
fn in_a_loop() -> LoadedModel {
    let mut model = loaded("dynamo18-llama-nocache");
    let g = graph(&mut model);
    g.value_info.clear();
    let mut nodes = std::mem::take(&mut g.node);
    for output in nodes
        .iter_mut()
        .flat_map(|n| &mut n.output)
        .filter(|o| *o == "logits")
    {
        *output = "inner_logits".to_owned();
    }
    nodes.push(node(
        "Identity",
        "go_on",
        &["condition"],
        &["condition_out"],
    ));
    let body = GraphProto {
        name: Some("body".to_owned()),
        node: nodes,
        input: vec![
            value(
                "iteration",
                DataType::Int64,
                Some(TensorShapeProto::default()),
            ),
            value(
                "condition",
                DataType::Bool,
                Some(TensorShapeProto::default()),
            ),
        ],
        output: vec![
            value(
                "condition_out",
                DataType::Bool,
                Some(TensorShapeProto::default()),
            ),
            value("inner_logits", DataType::Float, None),
        ],
        ..GraphProto::default()
    };
    g.initializer.extend([
        scalar("once", DataType::Int64, 1i64.to_le_bytes().to_vec()),
        scalar("yes", DataType::Bool, vec![1]),
        int64_vector("first_axis", &[0]),
    ]);
    let mut repeat = node("Loop", "loop", &["once", "yes"], &["stacked"]);
    repeat.attribute.push(AttributeProto {
        name: Some("body".to_owned()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(body),
        ..AttributeProto::default()
    });
    g.node.push(repeat);
    g.node.push(node(
        "Squeeze",
        "unstack",
        &["stacked", "first_axis"],
        &["logits"],
    ));
    model
}

#[test]
fn a_loop_body_without_a_cache_is_rewritten() {
    let before = in_a_loop();
    let mut after = in_a_loop();
    assert_eq!(
        rewritten(&mut after, RewriteOptions::default())
            .unwrap()
            .sites
            .len(),
        2
    );
    exact(&before, &after);
}

/// A cache that an `If` inside a branch makes goes out through both, and all four attentions of a layer share its basis.
#[test]
fn an_if_inside_a_branch_is_rewritten_too() {
    let place = crate::common::folder();
    let (model, out) = (
        place.path().join("nested.onnx"),
        place.path().join("out.onnx"),
    );
    let script =
        std::fs::read_to_string(crate::common::root().join("tests/python/nested.py")).unwrap();
    let source = crate::common::fixture("merged-llama").join("model.onnx");
    crate::common::python(&script, &[&source, &model]);
    let told = crate::common::with(&[&"inspect", &model, &"--json"]).json();
    // Two layers, each in the two inner branches and in the other outer one.
    assert_eq!(told["recognised"], serde_json::json!(2), "{told:#}");
    let sites = told["sites"].as_array().unwrap();
    assert_eq!(sites.len(), 6, "{told:#}");
    assert!(sites.iter().all(|s| s["within"].is_string()), "{told:#}");
    let ran = crate::common::with(&[&"rewrite", &model, &"-o", &out, &"--tolerance", &"2e-5"]);
    assert_eq!(ran.code, 0, "{ran:?}");
}
