//! The expanded form rotates cached rows at their own positions: positions that a graph edits, and angles that mix them,
//! are refused at their node, and the absorbed form, which caches rotated keys, is exact all the same.

use crate::common::{SINGLE, compared, in_ort, loaded, rewritten};
use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::graph::build::{int64_vector, node};
use gqa2mla_passes::onnx::tensor_shape_proto::dimension::Value as Size;
use gqa2mla_passes::onnx::type_proto::Value;
use gqa2mla_passes::onnx::{GraphProto, NodeProto};
use gqa2mla_passes::{Absorbed, Expanded, Form, RewriteError, RewriteOptions};

/// `dynamo18-llama` with `nodes` between its position input and what computes with it; they make `edited`.
fn edited(nodes: Vec<NodeProto>) -> LoadedModel {
    let mut model = loaded("dynamo18-llama");
    let graph: &mut GraphProto = model.model.proto.graph.as_mut().unwrap();
    for node in graph.node.iter_mut().filter(|n| n.op_type() != "Shape") {
        for input in node.input.iter_mut().filter(|i| *i == "position_ids") {
            *input = "edited".to_owned();
        }
    }
    for (name, value) in [("toy/two", 2), ("toy/three", 3), ("toy/one", 1)] {
        graph.initializer.push(int64_vector(name, &[value]));
    }
    graph.node.splice(0..0, nodes);
    model
}

fn attempt(model: &LoadedModel, form: &dyn Form) -> Result<LoadedModel, RewriteError> {
    let mut after = model.clone();
    let options = RewriteOptions {
        form,
        ..RewriteOptions::default()
    };
    rewritten(&mut after, options).map(|_| after)
}

#[test]
fn edited_positions_are_refused_at_the_node_by_the_form_that_needs_them() {
    let edits = [
        ("Mul", vec!["position_ids", "toy/two"]),
        ("Sub", vec!["position_ids", "toy/three"]),
        ("Mod", vec!["position_ids", "toy/three"]),
        ("Min", vec!["position_ids", "toy/three"]),
        ("Add", vec!["position_ids", "input_ids"]),
        ("CumSum", vec!["position_ids", "toy/one"]),
        ("Identity", vec!["input_ids"]),
    ];
    for (op, inputs) in edits {
        let model = edited(vec![node(op, "toy/edit", &inputs, &["edited"])]);
        let error = attempt(&model, &Expanded).unwrap_err().to_string();
        let named = error.contains("toy/edit") || error.contains("input_ids");
        assert!(named && error.contains("absorbed"), "{op}: {error}");
        let after = attempt(&model, &Absorbed).unwrap();
        let found = compared(&model, &after, in_ort(SINGLE)).unwrap();
        assert!(found.passed(), "{op}: {:e}", found.max_ratio());
    }
}

/// The message with which the expanded form refuses a model whose cos and sin are taken of "edited", which `edit` makes of
/// the angles; `constants` are int64 vectors of one element.
fn refused_angles(constants: &[(&str, i64)], edit: impl FnOnce(&str) -> Vec<NodeProto>) -> String {
    let mut model = loaded("dynamo18-llama");
    let graph = model.model.proto.graph.as_mut().unwrap();
    let is_cos = |n: &NodeProto| n.op_type() == "Cos";
    let cos = graph.node.iter().position(is_cos).unwrap();
    let angle = graph.node[cos].input[0].clone();
    for node in graph.node.iter_mut() {
        for input in node.input.iter_mut().filter(|i| **i == angle) {
            *input = "edited".to_owned();
        }
    }
    let vectors = constants.iter().map(|(name, n)| int64_vector(name, &[*n]));
    graph.initializer.extend(vectors);
    graph.node.splice(cos..cos, edit(&angle));
    attempt(&model, &Expanded).unwrap_err().to_string()
}

#[test]
fn angles_that_mix_positions_are_refused_at_the_node() {
    let error = refused_angles(&[("toy/axis", 1)], |angle| {
        vec![node("CumSum", "toy/mix", &[angle, "toy/axis"], &["edited"])]
    });
    assert!(error.contains("CumSum 'toy/mix'"), "{error}");
}

/// A row of the angles that takes in another row is no longer its own position times a frequency.
/// With as many rows as there are frequencies, the positions of the rows would pass for frequencies.
#[test]
fn a_transpose_that_makes_channels_of_the_rows_of_a_batch_is_refused() {
    let mut model = loaded("dynamo18-llama");
    let graph = model.model.proto.graph.as_mut().unwrap();
    for input in &mut graph.input {
        let kind = input.r#type.as_mut().unwrap().value.as_mut().unwrap();
        let Value::TensorType(tensor) = kind else {
            panic!("{kind:?}")
        };
        tensor.shape.as_mut().unwrap().dim[0].value = Some(Size::DimValue(8));
    }
    let mut nodes = graph.node.iter_mut();
    let transpose = nodes.find(|n| n.name() == "node_transpose").unwrap();
    transpose.attribute[0].ints = vec![1, 2, 0];
    let error = attempt(&model, &Expanded).unwrap_err().to_string();
    assert!(error.contains("'position_ids' has 8 rows"), "{error}");
}

#[test]
fn angles_that_take_in_another_position_are_refused() {
    let error = refused_angles(&[("toy/last", -1)], |angle| {
        let row = node("Gather", "toy/row", &[angle, "toy/last"], &["toy/row"]);
        let shift = node("Sub", "toy/shift", &[angle, "toy/row"], &["edited"]);
        vec![row.with_int("axis", 1), shift]
    });
    assert!(error.contains("toy/"), "{error}");
}

/// `Where` with any other condition than padding edits positions.
#[test]
fn positions_that_are_bounded_by_a_condition_are_refused() {
    let model = edited(vec![
        node(
            "Greater",
            "toy/far",
            &["position_ids", "toy/three"],
            &["toy/far"],
        ),
        node(
            "Where",
            "toy/bound",
            &["toy/far", "toy/three", "position_ids"],
            &["edited"],
        ),
    ]);
    let error = attempt(&model, &Expanded).unwrap_err().to_string();
    assert!(error.contains("Where 'toy/bound'"), "{error}");
}

#[test]
fn what_only_carries_positions_changes_nothing() {
    let model = edited(vec![
        node("Identity", "toy/same", &["position_ids"], &["toy/same"]),
        node("Cast", "toy/cast", &["toy/same"], &["edited"]).with_int("to", 7),
    ]);
    let after = attempt(&model, &Expanded).unwrap();
    let found = compared(&model, &after, in_ort(SINGLE)).unwrap();
    assert!(found.passed(), "{:e}", found.max_ratio());
}
