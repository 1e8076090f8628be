//! Shape inference of `Einsum`: each letter of the equation is one size.

use std::collections::BTreeMap;

use tract_data::prelude::TDim;

use crate::facts::{Fact, Facts, Shape, shapes};
use crate::graph::attribute;
use crate::onnx::NodeProto;

/// What stands for the axes of an operand that have no letter.
const ELLIPSIS: &str = "...";

/// The shape of the output of the `Einsum` `node`; `None` if the equation does not fit the ranks of the operands. Where
/// a letter has the size one in one operand and another size in another, the axis is broadcast.
pub fn einsum(facts: &Facts, node: &NodeProto, inputs: &[&Fact]) -> Option<Shape> {
    let equation = attribute(node, "equation")?;
    let equation = std::str::from_utf8(equation.s()).ok()?.replace(' ', "");
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation.as_str(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != inputs.len() {
        return None;
    }
    let mut letters: BTreeMap<char, Vec<TDim>> = BTreeMap::new();
    let mut others: Vec<&[TDim]> = Vec::new();
    for (term, input) in terms.iter().zip(inputs) {
        let shape = input.shape.as_deref()?;
        let (before, after) = term.split_once(ELLIPSIS).unwrap_or((term, ""));
        let named = before.chars().count() + after.chars().count();
        let open = shape.len().checked_sub(named)?;
        if open > 0 && !term.contains(ELLIPSIS) {
            return None;
        }
        let start = before.chars().count();
        let (head, rest) = shape.split_at_checked(start)?;
        let (middle, tail) = rest.split_at_checked(open)?;
        others.push(middle);
        for (letter, size) in before
            .chars()
            .chain(after.chars())
            .zip(head.iter().chain(tail))
        {
            letters.entry(letter).or_default().push(size.clone());
        }
    }
    let size = |letter: char| -> Option<TDim> {
        let sizes = letters.get(&letter)?;
        let each: Vec<&[TDim]> = sizes.iter().map(std::slice::from_ref).collect();
        let size = shapes::broadcast(&each).into_iter().next()?;
        Some(size.unwrap_or_else(|| facts.fresh()))
    };
    let broadcast = || shapes::filled(shapes::broadcast(&others), || facts.fresh());
    let Some(right) = right else {
        // Without an arrow: the axes without letters, and then the letters that occur once, in the order of the alphabet.
        let mut shape = broadcast();
        let once = letters.iter().filter(|(_, sizes)| sizes.len() == 1);
        shape.extend(once.filter_map(|(_, sizes)| sizes.first().cloned()));
        return Some(shape);
    };
    let (before, after) = right.split_once(ELLIPSIS).unwrap_or((right, ""));
    let mut shape: Shape = before.chars().map(size).collect::<Option<_>>()?;
    if right.contains(ELLIPSIS) {
        shape.extend(broadcast());
    }
    shape.extend(after.chars().map(size).collect::<Option<Shape>>()?);
    Some(shape)
}
