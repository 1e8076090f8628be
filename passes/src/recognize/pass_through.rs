//! Nodes between the graph input or output of a cache and its `Concat` that commute with a change of the cached rows.
//!
//! Exporters and conversion tools write such nodes on both sides of the `Concat`: aliases, casts between fp32 and fp16
//! in models that keep their interface types, the selection of beams on the batch axis. They act alike on all heads and
//! channels, so they work on latent rows too, and a rewrite keeps them.

use crate::facts::precision::is_float;
use crate::facts::{Facts, shapes};
use crate::graph::{Graph, NodeId, attribute, int_attribute, is_alias, is_op};
use crate::onnx::NodeProto;

/// The input of `node`, if `node` passes it through; `None` for any other operator.
pub fn passed<'g>(facts: &Facts, node: &'g NodeProto) -> Option<&'g str> {
    let input = node.input.first().map(String::as_str)?;
    let passes = match node.op_type() {
        _ if is_alias(node) => true,
        "Cast" if is_op(node, "Cast") => {
            let to = attribute(node, "to").map_or(0, |a| a.i() as i32);
            is_float(to) && facts.elem_type(input).is_some_and(is_float)
        }
        // The selection of sequences by beam indices.
        "Gather" if is_op(node, "Gather") => {
            let rank = |value: &str| facts.shape(value).map(<[_]>::len);
            let chosen = node.input.get(1).and_then(|i| rank(i));
            let axis = int_attribute(node, "axis", 0);
            chosen == Some(1) && rank(input).and_then(|r| shapes::axis(axis, r)) == Some(0)
        }
        _ => false,
    };
    passes.then_some(input)
}

/// The graph input that reaches `value` through pass-through nodes only, and the values between them, `value` first.
pub fn past<'a>(
    graph: &Graph<'a>,
    facts: &Facts,
    value: &'a str,
) -> Option<(&'a str, Vec<&'a str>)> {
    let (mut current, mut passing) = (value, Vec::new());
    while graph.input(current).is_none() {
        let (_, node) = graph.producer(current)?;
        passing.push(current);
        current = passed(facts, node)?;
        if passing.len() > graph.proto().node.len() {
            return None;
        }
    }
    Some((current, passing))
}

/// The values from `value` to the graph output that it reaches through pass-through nodes only, both included.
pub fn present<'a>(graph: &Graph<'a>, facts: &Facts, value: &'a str) -> Option<Vec<&'a str>> {
    let mut from: Vec<(&str, Option<usize>)> = vec![(value, None)];
    let mut at = 0;
    while let Some(&(current, _)) = from.get(at) {
        if graph.is_output(current) {
            let mut way = Vec::new();
            let mut place = Some(at);
            while let Some(&(value, before)) = place.and_then(|p| from.get(p)) {
                way.push(value);
                place = before;
            }
            way.reverse();
            return Some(way);
        }
        let next = graph.uses(current).iter().filter_map(|usage| {
            let node = graph.node(usage.node)?;
            (usage.input == Some(0) && passed(facts, node).is_some())
                .then(|| node.output.first().map(String::as_str))?
        });
        from.extend(next.map(|value| (value, Some(at))));
        at += 1;
        if at > graph.proto().node.len() {
            return None;
        }
    }
    None
}

/// Whether `node` makes one of `values`.
pub fn makes(graph: &Graph, node: NodeId, values: &[String]) -> bool {
    let node = graph.node(node);
    node.is_some_and(|n| n.output.iter().any(|o| values.contains(o)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::passed;
    use crate::facts::Facts;
    use crate::graph::Graph;
    use crate::graph::build::{node, value};
    use crate::onnx::stored::Model;
    use crate::onnx::{GraphProto, NodeProto, tensor_proto::DataType};

    /// Whether `node`, which reads the cache `past` [2, 3, 4, 5], passes it on.
    fn passes(node: NodeProto) -> bool {
        let (float, int64) = (DataType::Float as i32, DataType::Int64 as i32);
        let graph = GraphProto {
            input: vec![
                value("past", float, &[2, 3, 4, 5]),
                value("beams", int64, &[2]),
                value("table", int64, &[2, 1]),
            ],
            node: vec![node],
            ..GraphProto::default()
        };
        let facts = Facts::of_main(
            &Model::default(),
            &Graph::new(&graph),
            crate::facts::Rules::default(),
        );
        passed(&facts, graph.node.first().unwrap()).is_some()
    }

    #[test]
    fn names_float_types_and_beams_pass_a_cache_on() {
        let cast = |to: DataType| node("Cast", "c", &["past"], &["y"]).with_int("to", to as i64);
        let chosen = |by, axis| node("Gather", "g", &["past", by], &["y"]).with_int("axis", axis);
        assert!(passes(node("Identity", "i", &["past"], &["y"])));
        assert!(passes(cast(DataType::Float)) && passes(cast(DataType::Float16)));
        assert!(passes(chosen("beams", 0)) && passes(chosen("beams", -4)));
        // Whole numbers cannot hold a latent; another axis than the batch holds heads, positions or channels.
        assert!(!passes(cast(DataType::Int8)));
        assert!(!passes(chosen("beams", 1)) && !passes(chosen("beams", 2)));
        assert!(!passes(chosen("table", 0)));
        assert!(!passes(node("Neg", "n", &["past"], &["y"])));
    }
}
