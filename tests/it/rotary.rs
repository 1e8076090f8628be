//! RoPE as one operator in front of a `GroupQueryAttention` that takes the place of products.

use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::forms::KeptHeads;
use gqa2mla_passes::graph::build::{int64_vector, node};
use gqa2mla_passes::onnx::tensor_proto::DataType;
use gqa2mla_passes::onnx::{NodeProto, TensorProto};
use gqa2mla_passes::{RankPlan, RewriteOptions};

use crate::common::{SINGLE, all_nodes, loaded, proved, rewritten, rewritten_to};

const FIXTURE: &str = "dynamo18-llama";

fn nodes(model: &mut LoadedModel) -> &mut Vec<NodeProto> {
    &mut model.model.proto.graph.as_mut().unwrap().node
}

/// How many nodes of `op` are in the model with the operator in place of products, which computes the same.
fn counted(what: &str, before: &LoadedModel, op: &str) -> usize {
    let after = rewritten_to(before, &KeptHeads, RankPlan::Full);
    proved(what, (before, &after), SINGLE);
    let all = all_nodes(after.model.proto.graph.as_ref().unwrap());
    all.iter().filter(|n| n.op_type() == op).count()
}

#[test]
fn queries_and_keys_of_each_layer_are_rotated_by_the_operator_as_they_are_projected() {
    let model = loaded(FIXTURE);
    assert_eq!(counted(FIXTURE, &model, "RotaryEmbedding"), 4);
    // Neither heads nor halves are made.
    for op in ["Transpose", "Neg"] {
        assert_eq!(
            counted(FIXTURE, &model, op),
            usize::from(op == "Transpose"),
            "{op}"
        );
    }
}

/// The operator has one angle for the two numbers of a pair.
#[test]
fn halves_with_angles_of_their_own_stay_spelled_out() {
    let mut model = loaded(FIXTURE);
    let all = nodes(&mut model);
    let at = all
        .iter()
        .position(|n| n.op_type() == "Concat" && matches!(n.input.as_slice(), [a, b] if a == b));
    let at = at.unwrap();
    let angles = all[at].input[1].clone();
    all[at].input[1] = "doubled".to_owned();
    all.insert(
        at,
        node("Add", "doubled", &[&angles, &angles], &["doubled"]),
    );
    assert_eq!(counted("two angles", &model, "RotaryEmbedding"), 0);
}

/// Keys that are rotated the other way, as no operator does.
#[test]
fn a_rotation_in_the_other_direction_stays_spelled_out() {
    let mut model = loaded(FIXTURE);
    let negated: Vec<String> = nodes(&mut model)
        .iter()
        .filter(|n| n.op_type() == "Neg")
        .map(|n| n.output[0].clone())
        .collect();
    for join in nodes(&mut model) {
        if join.op_type() == "Concat" && negated.contains(&join.input[0]) {
            join.input.swap(0, 1);
        }
    }
    assert_eq!(counted("exchanged halves", &model, "RotaryEmbedding"), 0);
}

/// Of three parts of the channels, the second is no half.
#[test]
fn a_split_into_three_parts_stays_spelled_out() {
    let mut model = loaded(FIXTURE);
    let graph = model.model.proto.graph.as_mut().unwrap();
    let negated: Vec<String> = graph
        .node
        .iter()
        .filter(|n| n.op_type() == "Neg")
        .map(|n| n.input[0].clone())
        .collect();
    for slice in &mut graph.node {
        if negated.contains(&slice.output[0]) {
            let (rows, half) = (slice.input[0].clone(), slice.output[0].clone());
            let parts = [format!("{half}_before"), half, format!("{rows}_after")];
            let outputs: Vec<&str> = parts.iter().map(String::as_str).collect();
            *slice = node("Split", outputs[0], &[&rows, "parts"], &outputs).with_int("axis", 3);
        }
    }
    graph.initializer.push(int64_vector("parts", &[4, 8, 4]));
    assert_eq!(counted("three parts", &model, "RotaryEmbedding"), 0);
}

/// ONNX Runtime's operator takes no doubles.
#[test]
fn a_rotation_in_double_stays_spelled_out() {
    let mut model = loaded(FIXTURE);
    let graph = model.model.proto.graph.as_mut().unwrap();
    let sums: Vec<[String; 3]> = graph
        .node
        .iter()
        .filter(|n| n.op_type() == "Concat" && n.output[0].starts_with("cat_"))
        .filter_map(|turned| {
            let product = graph
                .node
                .iter()
                .find(|n| n.input.contains(&turned.output[0]))?;
            let sum = graph
                .node
                .iter()
                .find(|n| n.input.contains(&product.output[0]))?;
            let sum = (sum.op_type() == "Add").then_some(sum)?;
            Some([
                sum.input[0].clone(),
                sum.input[1].clone(),
                sum.output[0].clone(),
            ])
        })
        .collect();
    assert!(!sums.is_empty());
    for [one, other, sum] in sums {
        let at = graph.node.iter().position(|n| n.output[0] == sum).unwrap();
        let wide = [&one, &other].map(|v| format!("{v}_{sum}_wide"));
        let cast = |from: &str, to: &str, kind: DataType| {
            node("Cast", &format!("{to}_cast"), &[from], &[to]).with_int("to", kind as i64)
        };
        let nodes = [
            cast(&one, &wide[0], DataType::Double),
            cast(&other, &wide[1], DataType::Double),
            node(
                "Add",
                &format!("{sum}_in_double"),
                &[&wide[0], &wide[1]],
                &[&format!("{sum}_wide")],
            ),
            cast(&format!("{sum}_wide"), &sum, DataType::Float),
        ];
        graph.node.splice(at..=at, nodes);
    }
    assert_eq!(counted("double", &model, "RotaryEmbedding"), 0);
}

/// The operator takes a scale of 0 for its default.
#[test]
fn scores_that_are_multiplied_by_zero_stay_products() {
    let mut model = loaded("optimum-llama");
    let graph = model.model.proto.graph.as_mut().unwrap();
    let at = graph
        .node
        .iter()
        .position(|n| n.op_type() == "Softmax")
        .unwrap();
    let scores = graph.node[at].input[0].clone();
    let maker = graph
        .node
        .iter()
        .position(|n| n.output[0] == scores)
        .unwrap();
    assert_eq!(graph.node[maker].op_type(), "Add");
    let products = graph.node[maker].input[0].clone();
    graph.node[maker].input[0] = "none".to_owned();
    graph.initializer.push(TensorProto {
        name: Some("zero".to_owned()),
        data_type: Some(DataType::Float as i32),
        raw_data: Some(vec![0; 4].into()),
        ..TensorProto::default()
    });
    graph
        .node
        .insert(maker, node("Mul", "none", &[&products, "zero"], &["none"]));
    let options = RewriteOptions {
        form: &KeptHeads,
        ..RewriteOptions::default()
    };
    let told = rewritten(&mut model, options).unwrap_err().to_string();
    assert!(told.contains("multiplied by 0"), "{told}");
}
