//! A softmax over the last axis: the operator, or the five operators that define it.
//!
//! ```text
//! e = Exp(x - ReduceMax(x)),  p = e / ReduceSum(e)
//! ```
//!
//! ONNX Runtime inlines the definition (ONNX operator specification, opset 13) where it has no kernel for the element type,
//! as in models of fp16 that it saves on a CPU.

use crate::facts::{Facts, axes, shapes};
use crate::graph::{Graph, input_at, int_attribute, is_op, output_at};
use crate::onnx::NodeProto;

/// The scores and the probabilities of a softmax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Softmax<'g> {
    /// The scores.
    pub scores: &'g str,
    /// The probabilities.
    pub probabilities: &'g str,
}

/// The softmax whose probabilities `node` makes.
pub fn softmax<'g>(graph: &Graph<'g>, facts: &Facts, node: &'g NodeProto) -> Option<Softmax<'g>> {
    let scores = match node.op_type() {
        "Softmax" if is_op(node, "Softmax") => input_at(node, 0)?,
        "Div" if is_op(node, "Div") => defined(graph, facts, node)?,
        _ => return None,
    };
    Some(Softmax {
        scores,
        probabilities: output_at(node, 0)?,
    })
}

/// The softmax over the last axis that reads the scores `value`, if nothing but `Shape` reads them beside it.
pub fn softmax_of<'g>(graph: &Graph<'g>, facts: &Facts, value: &str) -> Option<Softmax<'g>> {
    let readers: Vec<&NodeProto> = (graph.uses(value).iter())
        .filter_map(|usage| graph.node(usage.node))
        .filter(|node| !is_op(node, "Shape"))
        .collect();
    let made = match readers.as_slice() {
        [node] if is_op(node, "Softmax") => {
            matches!(int_attribute(node, "axis", -1), -1 | 3).then_some(*node)?
        }
        [one, other] => {
            let less = [one, other].into_iter().find(|node| is_op(node, "Sub"))?;
            let power = only_reader(graph, output_at(less, 0)?)?;
            let readers = graph.uses(output_at(power, 0)?).iter();
            let mut readers = readers.filter_map(|usage| graph.node(usage.node));
            readers.find(|node| is_op(node, "Div"))?
        }
        _ => return None,
    };
    softmax(graph, facts, made).filter(|found| found.scores == value)
}

fn only_reader<'g>(graph: &Graph<'g>, value: &str) -> Option<&'g NodeProto> {
    match graph.uses(value) {
        [usage] => graph.node(usage.node),
        _ => None,
    }
}

/// The scores x of the quotient `quotient`, if it is the definition above.
fn defined<'g>(graph: &Graph<'g>, facts: &Facts, quotient: &'g NodeProto) -> Option<&'g str> {
    let made = |value: &str, op: &str| {
        let (_, node) = graph.producer(value)?;
        is_op(node, op).then_some(node)
    };
    let (power, sum) = (input_at(quotient, 0)?, input_at(quotient, 1)?);
    let exp = made(power, "Exp")?;
    let less = made(input_at(exp, 0)?, "Sub")?;
    let (scores, most) = (input_at(less, 0)?, input_at(less, 1)?);
    let reduces = |value: &str, op: &str, of: &str| {
        let node = made(value, op)?;
        (input_at(node, 0)? == of && is_by_row(facts, node)?).then_some(())
    };
    reduces(sum, "ReduceSum", power)?;
    reduces(most, "ReduceMax", scores)?;
    Some(scores)
}

/// Whether the reduction `node` is one over the last axis, which stays with size one.
fn is_by_row(facts: &Facts, node: &NodeProto) -> Option<bool> {
    let rank = facts.shape(input_at(node, 0)?)?.len();
    let along = match axes(facts, node)?.as_slice() {
        [axis] => shapes::axis(*axis, rank)?,
        _ => return None,
    };
    Some(along + 1 == rank && int_attribute(node, "keepdims", 1) != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{softmax, softmax_of};
    use crate::facts::{Facts, Rules};
    use crate::graph::Graph;
    use crate::graph::build::{int64_vector, node, value};
    use crate::onnx::stored::Model;
    use crate::onnx::{GraphProto, NodeProto, tensor_proto::DataType};

    type Change = fn(&mut NodeProto);

    /// The definition, of x [2, 3, 4, 5].
    fn definition() -> Vec<NodeProto> {
        vec![
            node("ReduceMax", "m", &["x", "last"], &["most"]),
            node("Sub", "s", &["x", "most"], &["less"]),
            node("Exp", "e", &["less"], &["power"]),
            node("ReduceSum", "r", &["power", "last"], &["sum"]),
            node("Div", "d", &["power", "sum"], &["p"]),
        ]
    }

    /// Whether the last of `nodes` is a softmax of x, found from its output and from its input alike.
    fn is_softmax(nodes: Vec<NodeProto>) -> bool {
        let graph = GraphProto {
            input: vec![value("x", DataType::Float as i32, &[2, 3, 4, 5])],
            initializer: vec![int64_vector("last", &[-1]), int64_vector("rows", &[2])],
            node: nodes,
            ..GraphProto::default()
        };
        let graph = Graph::new(&graph);
        let facts = Facts::of_main(&Model::default(), &graph, Rules::default());
        let last = graph.proto().node.last().unwrap();
        let found = softmax(&graph, &facts, last).map(|s| (s.scores, s.probabilities));
        let read = softmax_of(&graph, &facts, "x").map(|s| (s.scores, s.probabilities));
        assert_eq!(found, read);
        found == Some(("x", "p"))
    }

    #[test]
    fn the_definition_is_a_softmax_and_what_differs_from_it_is_none() {
        assert!(is_softmax(vec![node("Softmax", "s", &["x"], &["p"])]));
        assert!(is_softmax(definition()));
        // The most of another axis, a sum without its axis, a quotient of other numbers.
        let changes: [(usize, Change); 5] = [
            (0, |n| n.input[1] = "rows".to_owned()),
            (3, |n| n.input[1] = "rows".to_owned()),
            (3, |n| *n = n.clone().with_int("keepdims", 0)),
            (3, |n| n.input[0] = "less".to_owned()),
            (4, |n| n.input.swap(0, 1)),
        ];
        for (at, change) in changes {
            let mut nodes = definition();
            change(&mut nodes[at]);
            assert!(!is_softmax(nodes), "{at}");
        }
    }
}
