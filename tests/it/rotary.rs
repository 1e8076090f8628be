//! RoPE as one operator in front of a `GroupQueryAttention` that takes the place of products.

use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::RankPlan;
use gqa2mla_passes::forms::KeptHeads;
use gqa2mla_passes::graph::build::node;
use gqa2mla_passes::onnx::NodeProto;

use crate::common::{SINGLE, all_nodes, loaded, proved, rewritten_to};

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
