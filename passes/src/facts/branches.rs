//! Inference of `If`: the facts on which both branches agree.

use crate::facts::constant::constant;
use crate::facts::stored::of_tensor;
use crate::facts::{Fact, Facts};
use crate::graph::{is_op, subgraphs};
use crate::onnx::stored::Model;
use crate::onnx::{GraphProto, NodeProto};

/// Most nodes that are followed from the output of a branch to a constant.
const FARTHEST: usize = 16;

/// The facts of the outputs of `node`, an `If`. If both branches return a constant, such as the two RoPE tables that
/// LongRoPE chooses from, or a value of the enclosing graph, they are the common type and the sizes that are equal. All
/// other outputs are unknown.
pub fn agreed(facts: &Facts, model: &Model, node: &NodeProto) -> Vec<Fact> {
    let known = Known { facts, model };
    let outputs = 0..node.output.len();
    outputs
        .map(|at| known.of_if(&[], node, at, FARTHEST).unwrap_or_default())
        .collect()
}

/// What is known around an `If`.
struct Known<'k> {
    facts: &'k Facts,
    model: &'k Model,
}

impl Known<'_> {
    /// The fact of the output `at` of `node`, an `If` in the innermost of the branches `around`.
    fn of_if(
        &self,
        around: &[&GraphProto],
        node: &NodeProto,
        at: usize,
        left: usize,
    ) -> Option<Fact> {
        let branches: Vec<&GraphProto> = subgraphs(node).collect();
        let [one, other] = branches.as_slice() else {
            return None;
        };
        let of = |branch: &GraphProto| {
            let output = branch.output.get(at)?;
            self.given(&[around, &[branch]].concat(), output.name(), left)
        };
        common(self.facts, &of(one)?, &of(other)?)
    }

    /// The fact of `value` in the innermost of the branches `around`, if it is a constant or an alias of one, the output of
    /// an `If` of such values, or a value of the graph around all branches.
    fn given(&self, around: &[&GraphProto], value: &str, left: usize) -> Option<Fact> {
        let left = left.checked_sub(1)?;
        let Some((branch, outside)) = around.split_last() else {
            let fact = self.facts.get(value);
            return fact.shape.is_some().then(|| fact.clone());
        };
        if let Some(tensor) = branch.initializer.iter().find(|t| t.name() == value) {
            return Some(of_tensor(self.model, tensor));
        }
        let position = |n: &NodeProto| n.output.iter().position(|o| o == value);
        let made = branch.node.iter().find_map(|n| Some((n, position(n)?)));
        match made {
            None => self.given(outside, value, left),
            Some((node, _)) if is_op(node, "Constant") => constant(self.model, node),
            Some((node, _)) if is_op(node, "Identity") => {
                self.given(around, node.input.first()?, left)
            }
            Some((node, at)) if is_op(node, "If") => self.of_if(around, node, at, left),
            Some(_) => None,
        }
    }
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
