//! Shapes that cannot go together: what is known of the inputs of a node contradicts its operator.
//!
//! Only constant sizes contradict each other; two symbols may be equal in every run.

use tract_data::prelude::TDim;

use crate::facts::shapes::axis;
use crate::facts::{Fact, Facts};
use crate::graph::verify::OperandError;
use crate::graph::{attribute, int_attribute, is_op, label};
use crate::onnx::NodeProto;

/// Whether both sizes are constants, and different ones.
pub fn differ(a: &TDim, b: &TDim) -> bool {
    a.as_i64().zip(b.as_i64()).is_some_and(|(a, b)| a != b)
}

/// Holds the shapes of the inputs of `node` to what its operator takes.
pub fn check(facts: &Facts, node: &NodeProto) -> Result<(), OperandError> {
    let inputs: Vec<&Fact> = node.input.iter().map(|name| facts.get(name)).collect();
    let Some((position, expected)) = contradiction(facts, node, &inputs) else {
        return Ok(());
    };
    let shape = inputs.get(position).and_then(|f| f.shape.as_deref());
    Err(OperandError {
        node: label(node).to_owned(),
        operator: node.op_type().to_owned(),
        input: node.input.get(position).cloned().unwrap_or_default(),
        found: shape.map_or_else(|| "of unknown shape".to_owned(), text),
        expected,
    })
}

/// `shape` as messages write it.
pub fn text(shape: &[TDim]) -> String {
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("[{}]", sizes.join(", "))
}

/// Position of the input that does not fit, and what would.
fn contradiction(facts: &Facts, node: &NodeProto, inputs: &[&Fact]) -> Option<(usize, String)> {
    let shape = |position: usize| inputs.get(position)?.shape.as_deref();
    if is_op(node, "MatMul") {
        let ([.., inner], [.., rows, _]) = (shape(0)?, shape(1)?) else {
            return None;
        };
        return differ(inner, rows).then(|| (1, format!("{inner} rows")));
    }
    if is_op(node, "Transpose") {
        let perm = attribute(node, "perm")?.ints.len();
        return (perm != shape(0)?.len()).then(|| (0, format!("{perm} axes")));
    }
    if is_op(node, "Reshape") {
        return reshaped(facts, node, shape(0)?);
    }
    if is_op(node, "Concat") {
        let first = shape(0)?;
        let at = axis(int_attribute(node, "axis", 0), first.len())?;
        let fits = |other: &[TDim]| {
            let mut others = first.iter().zip(other).enumerate();
            other.len() == first.len() && !others.any(|(i, (a, b))| i != at && differ(a, b))
        };
        let odd = (1..inputs.len()).find(|&i| shape(i).is_some_and(|other| !fits(other)))?;
        return Some((odd, format!("{} on all axes but {at}", text(first))));
    }
    let elementwise = ["Add", "Sub", "Mul", "Div", "Pow", "Where", "Min", "Max"];
    if elementwise.iter().any(|op| is_op(node, op)) {
        return (1..inputs.len()).find_map(|i| {
            let other = (0..i).find(|&j| !broadcast(shape(j), shape(i)))?;
            Some((i, format!("what broadcasts with {}", text(shape(other)?))))
        });
    }
    None
}

/// `Reshape` keeps the number of elements, and -1 divides it; only constants are compared.
fn reshaped(facts: &Facts, node: &NodeProto, from: &[TDim]) -> Option<(usize, String)> {
    let mut sizes = from.iter().map(TDim::as_i64);
    let all = sizes.try_fold(1i64, |all, size| all.checked_mul(size?))?;
    let target = facts.integers(node.input.get(1)?)?;
    let zero_is_kept = int_attribute(node, "allowzero", 0) == 0;
    let mut rest = 1i64;
    for (position, &size) in target.iter().enumerate().filter(|(_, size)| **size != -1) {
        let size = match size {
            0 if zero_is_kept => from.get(position)?.as_i64()?,
            size => size,
        };
        rest = rest.checked_mul(size)?;
    }
    let fits = match target.contains(&-1) {
        true => rest != 0 && all % rest == 0,
        false => all == rest,
    };
    (!fits).then(|| (0, format!("as many elements as {target:?}")))
}

/// Whether two shapes may broadcast with each other.
fn broadcast(a: Option<&[TDim]>, b: Option<&[TDim]>) -> bool {
    let (Some(a), Some(b)) = (a, b) else {
        return true;
    };
    let one = TDim::Val(1);
    a.iter()
        .rev()
        .zip(b.iter().rev())
        .all(|(a, b)| *a == one || *b == one || !differ(a, b))
}
