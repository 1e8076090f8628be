//! The origin of an unknown shape: the first node of a graph whose output has an unknown shape although the shapes of its
//! inputs are known, or the graph input without a declared shape.

use std::collections::HashSet;

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, label};
use crate::recognize::reject::{Operand, Reason};

/// Most values that the search visits.
const FARTHEST: usize = 5000;

/// The reason of an attention whose `operand` is `value`, if its shape is unknown.
pub fn unknown_shape(
    graph: &Graph,
    facts: &Facts,
    operand: Operand,
    value: &str,
) -> Option<Reason> {
    facts.shape(value).is_none().then(|| Reason::UnknownShape {
        operand,
        value: value.to_owned(),
        cause: origin(graph, facts, value),
    })
}

/// What loses the shape that `value` would have.
fn origin(graph: &Graph, facts: &Facts, value: &str) -> String {
    let mut seen = HashSet::new();
    let mut open = vec![value];
    let mut first: Option<NodeId> = None;
    let mut undeclared = None;
    while let Some(value) = open.pop() {
        if seen.len() > FARTHEST || !seen.insert(value) {
            continue;
        }
        let unknown = facts.shape(value).is_none();
        let Some((id, node)) = graph.producer(value) else {
            undeclared = undeclared.or(unknown.then_some(value));
            continue;
        };
        let inputs = node.input.iter().map(String::as_str);
        let inputs = || inputs.clone().filter(|input| !input.is_empty());
        if unknown && inputs().all(|input| facts.shape(input).is_some()) {
            first = Some(first.map_or(id, |known| known.min(id)));
        }
        // A target shape whose elements are unknown is computed of another value whose shape is unknown.
        let matters = |input: &&str| match facts.shape(input) {
            None => true,
            Some(sizes) => sizes.len() <= 1 && facts.get(input).content.is_none(),
        };
        open.extend(inputs().filter(matters));
    }
    match (undeclared, first.and_then(|id| graph.node(id))) {
        (Some(input), _) => format!("no shape is declared for '{input}'"),
        (None, Some(node)) => format!(
            "the shape of the output of {} '{}' is unknown",
            node.op_type(),
            label(node)
        ),
        (None, None) => format!("nothing tells the shape of '{value}'"),
    }
}
