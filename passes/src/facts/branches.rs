//! `If`: what both branches agree on.

use crate::facts::constant::constant;
use crate::facts::stored::of_tensor;
use crate::facts::{Fact, Facts};
use crate::graph::{is_op, subgraphs};
use crate::onnx::stored::Model;
use crate::onnx::{GraphProto, NodeProto};

/// The facts of the outputs of `node`, an `If`: of those that both branches give as constants, such as the two tables of
/// angles that LongRoPE chooses from, the type and the sizes that are the same. Nothing is told of the others.
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

/// The constant that `branch` gives out as `value`.
fn given(model: &Model, branch: &GraphProto, value: &str) -> Option<Fact> {
    if let Some(tensor) = branch.initializer.iter().find(|t| t.name() == value) {
        return Some(of_tensor(model, tensor));
    }
    let makes = |n: &&NodeProto| n.output.iter().any(|o| o == value);
    let node = branch.node.iter().find(makes)?;
    is_op(node, "Constant").then(|| constant(model, node))?
}

/// A size that differs is one that equals no other; which branch's numbers come out is not known.
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
