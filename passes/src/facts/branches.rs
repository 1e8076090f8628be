//! Inference of `If`: the facts on which both branches agree.

use crate::facts::constant::constant;
use crate::facts::stored::of_tensor;
use crate::facts::{Fact, Facts};
use crate::graph::{is_op, subgraphs};
use crate::onnx::stored::Model;
use crate::onnx::{GraphProto, NodeProto};

/// The facts of the outputs of `node`, an `If`. If both branches return a constant, such as the two RoPE tables that
/// LongRoPE chooses from, they are the common type and the sizes that are equal. All other outputs are unknown.
pub fn agreed(facts: &Facts, model: &Model, node: &NodeProto) -> Vec<Fact> {
    let branches: Vec<&GraphProto> = subgraphs(node).collect();
    let [one, other] = branches.as_slice() else {
        return Vec::new();
    };
    let outputs = one.output.iter().zip(&other.output);
    let both = outputs.map(|(a, b)| {
        let (a, b) = (given(model, one, a.name())?, given(model, other, b.name())?);
        common(facts, &a, &b)
    });
    both.map(Option::unwrap_or_default).collect()
}

/// The fact of the output `value` of `branch`, if it is a constant.
fn given(model: &Model, branch: &GraphProto, value: &str) -> Option<Fact> {
    if let Some(tensor) = branch.initializer.iter().find(|t| t.name() == value) {
        return Some(of_tensor(model, tensor));
    }
    let makes = |n: &&NodeProto| n.output.iter().any(|o| o == value);
    let node = branch.node.iter().find(makes)?;
    is_op(node, "Constant").then(|| constant(model, node))?
}

/// The facts that `a` and `b` have in common. Sizes that differ become a fresh symbol; the elements are unknown,
/// because the branch that runs is.
fn common(facts: &Facts, a: &Fact, b: &Fact) -> Option<Fact> {
    let (one, other) = (a.shape.as_ref()?, b.shape.as_ref()?);
    if a.elem_type != b.elem_type || one.len() != other.len() {
        return None;
    }
    let sizes = one.iter().zip(other);
    let shape = sizes.map(|(a, b)| match a == b {
        true => a.clone(),
        false => facts.fresh(),
    });
    Some(Fact::new(a.elem_type, Some(shape.collect())))
}
