//! Checks that the inferred shapes of a node's inputs fit each other and the operator.
//!
//! Only constant sizes can contradict each other; two different symbols may be equal in every run.

use tract_data::prelude::TDim;

use crate::facts::shapes::axis;
use crate::facts::{Fact, Facts};
use crate::graph::verify::OperandError;
use crate::graph::{attribute, input_at, int_attribute, is_op, label};
use crate::onnx::NodeProto;

/// Whether both sizes are constants and differ.
pub fn differ(a: &TDim, b: &TDim) -> bool {
    a.as_i64().zip(b.as_i64()).is_some_and(|(a, b)| a != b)
}

/// Checks the shapes of the inputs of `node` against its operator.
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

/// `shape` as text for messages, such as `[batch, 8]`.
pub fn text(shape: &[TDim]) -> String {
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("[{}]", sizes.join(", "))
}

/// The position of an input that does not fit, and the shape that is expected of it.
fn contradiction(facts: &Facts, node: &NodeProto, inputs: &[&Fact]) -> Option<(usize, String)> {
    let shape = |position: usize| inputs.get(position)?.shape.as_deref();
    let along = ["Concat", "Split", "Softmax", "LogSoftmax", "Gather"];
    if along.iter().any(|op| is_op(node, op)) {
        let (rank, at) = (shape(0)?.len(), attribute(node, "axis").map(|a| a.i()));
        if let Some(at) = at.filter(|&at| axis(at, rank).is_none()) {
            return Some((0, format!("an axis {at}")));
        }
    }
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
    if is_op(node, "Split") {
        return split(facts, node, shape(0)?);
    }
    if is_op(node, "Expand") {
        let target = facts.integers(node.input.get(1)?)?;
        let target: Vec<TDim> = target.iter().map(|&size| TDim::Val(size.max(1))).collect();
        let fits = broadcast(shape(0), Some(&target));
        return (!fits).then(|| (0, format!("what broadcasts with {}", text(&target))));
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

/// `Reshape` must keep the number of elements, and a -1 must leave an integer size; only constants are compared.
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

/// The sizes of a `Split` must be as many as its outputs, and add up to the axis; only constants are compared.
fn split(facts: &Facts, node: &NodeProto, from: &[TDim]) -> Option<(usize, String)> {
    let sizes = match input_at(node, 1) {
        Some(sizes) => facts.integers(sizes)?,
        None => attribute(node, "split")?.ints.clone(),
    };
    let whole = from
        .get(axis(int_attribute(node, "axis", 0), from.len())?)?
        .as_i64();
    let sum = sizes.iter().try_fold(0i64, |sum, &n| sum.checked_add(n));
    let fits = sizes.len() == node.output.len()
        && sizes.iter().all(|&n| n >= 0)
        && whole.is_none_or(|whole| sum == Some(whole));
    (!fits).then(|| (0, format!("an axis that is divided into {sizes:?}")))
}

/// Whether two shapes can be broadcast together; true if a shape is unknown.
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
