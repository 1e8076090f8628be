//! Caches whose output has the new rows alone, which the caller puts behind the past.
//!
//! ```text
//! whole     present [B, G, P + T, d] = Concat(past, rows)
//! new rows  present [B, G, T, d] = rows,  and the attention reads Concat(past, rows)
//! ```
//!
//! Exporters for accelerators write them, because the past is then copied by nobody. [`whole`] makes the outputs whole for
//! the analysis, so that recognition and forms see one kind of cache, and [`give_back`] returns the new rows of the
//! rewritten caches again.

use std::collections::HashMap;

use crate::facts::shapes::axis;
use crate::graph::order::sort;
use crate::graph::rename::{free, rename};
use crate::graph::{Graph, NodeId, attribute, input_at, int_attribute, is_alias, is_op, output_at};
use crate::onnx::tensor_shape_proto::Dimension;
use crate::onnx::{GraphProto, ValueInfoProto};

/// Most nodes between a cache and the interface of the model.
const MOST_PASSED: usize = 8;

/// An output with the new rows of a cache.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRows {
    /// The past input.
    pub past: String,
    /// The output.
    pub present: String,
    /// The sequence axis.
    pub axis: usize,
    /// The size of this axis that the output declares, if it declares a shape.
    length: Option<Dimension>,
    /// The rows that the attention reads.
    joined: String,
}

/// A graph whose outputs have whole caches, and the outputs that had new rows.
#[derive(Debug, Clone)]
pub struct Whole {
    /// The graph.
    pub graph: GraphProto,
    /// The outputs.
    pub outputs: Vec<NewRows>,
}

/// Where an output comes from.
struct Found {
    rows: NewRows,
    /// The value that the output is made of: the new rows.
    source: String,
    /// The node that reads it on the way to the output; `None` if it is the output.
    reader: Option<NodeId>,
}

/// The outputs of `graph` with new rows of a cache.
#[must_use]
pub fn new_rows(graph: &GraphProto) -> Vec<NewRows> {
    let view = Graph::new(graph);
    let outputs = graph.output.iter();
    let found = outputs.filter_map(|output| find(&view, output));
    found.map(|found| found.rows).collect()
}

/// `graph` with whole caches as outputs; `None` if it has them.
#[must_use]
pub fn whole(graph: &GraphProto) -> Option<Whole> {
    let view = Graph::new(graph);
    let mut made = graph.clone();
    let (mut names, mut outputs) = (HashMap::new(), Vec::new());
    for output in &graph.output {
        let Some(found) = find(&view, output) else {
            continue;
        };
        match found.reader {
            Some(reader) => read(&mut made, reader, found.rows.joined.clone()),
            None => {
                let rows = free(&view, &format!("{}/new_rows", found.source));
                names.insert(found.rows.joined.clone(), found.source.clone());
                names.insert(found.source, rows);
            }
        }
        let axis = axis_of(&mut made, &found.rows);
        axis.into_iter()
            .for_each(|axis| *axis = Dimension::default());
        outputs.push(found.rows);
    }
    if outputs.is_empty() {
        return None;
    }
    rename(&mut made, &names);
    sort(&mut made);
    Some(Whole {
        graph: made,
        outputs,
    })
}

/// Makes the `outputs` of `graph`, a rewritten graph with whole caches, new rows again.
///
/// # Errors
/// The first output that is not made by a `Concat` of past and new rows.
pub fn give_back(graph: &mut GraphProto, outputs: Vec<NewRows>) -> Result<(), String> {
    for output in outputs {
        let view = Graph::new(graph);
        let (reader, joined) = passed(&view, &output.present)
            .last()
            .unwrap_or((None, output.present.as_str()));
        let join = view.producer(joined).map(|(_, node)| node);
        let rows = join.filter(|n| is_op(n, "Concat") && n.input.len() == 2);
        let Some(rows) = rows.and_then(|n| input_at(n, 1)).map(str::to_owned) else {
            return Err(output.present);
        };
        match reader {
            Some(reader) => read(graph, reader, rows),
            None => {
                let joined = free(&view, &output.joined);
                let names = [
                    (output.present.clone(), joined),
                    (rows, output.present.clone()),
                ];
                rename(graph, &HashMap::from(names));
            }
        }
        if let (Some(axis), Some(length)) = (axis_of(graph, &output), &output.length) {
            axis.clone_from(length);
        }
    }
    sort(graph);
    Ok(())
}

/// The new rows that `output` has, if they are those that a `Concat` puts behind a graph input.
fn find(graph: &Graph, output: &ValueInfoProto) -> Option<Found> {
    let present = output.name();
    passed(graph, present).find_map(|(reader, source)| {
        let joins = graph
            .uses(source)
            .iter()
            .filter(|usage| usage.input == Some(1));
        let (join, past) = joins
            .filter_map(|usage| {
                let node = graph.node(usage.node)?;
                let appends = is_op(node, "Concat") && node.input.len() == 2;
                let first = input_at(node, 0).filter(|_| appends)?;
                let past = passed(graph, first).last()?.1;
                graph.input(past).map(|_| (node, past))
            })
            .next()?;
        let rank = graph.input(past)?.sizes()?.len();
        let axis = axis(int_attribute(join, "axis", 0), rank)?;
        let axis = outside(graph, (present, source), (axis, rank))?;
        let mut outputs = graph.proto().output.iter();
        let mut is_output = |joined: &&str| {
            outputs.any(|output| passed(graph, output.name()).any(|(_, value)| value == *joined))
        };
        let joined = output_at(join, 0).filter(|joined| !is_output(joined))?;
        Some(Found {
            rows: NewRows {
                past: past.to_owned(),
                present: present.to_owned(),
                axis,
                length: output.sizes().and_then(|sizes| sizes.get(axis)).cloned(),
                joined: joined.to_owned(),
            },
            source: source.to_owned(),
            reader,
        })
    })
}

/// Where the axis `axis` of `source` is in `present`, which is made of it by nodes that pass it on.
fn outside(
    graph: &Graph,
    (present, source): (&str, &str),
    (axis, rank): (usize, usize),
) -> Option<usize> {
    let mut made = Vec::new();
    let mut value = present;
    while value != source {
        let (_, node) = graph.producer(value)?;
        made.push(node);
        value = input_at(node, 0)?;
    }
    let mut nodes = made.into_iter().rev();
    nodes.try_fold(axis, |axis, node| match is_op(node, "Transpose") {
        true => {
            let Some(perm) = attribute(node, "perm") else {
                return rank.checked_sub(axis + 1);
            };
            perm.ints
                .iter()
                .position(|&from| usize::try_from(from) == Ok(axis))
        }
        false => Some(axis),
    })
}

/// `value` and the values that it is made of by aliases, casts, transposes and the selection of beams, each with the node that
/// reads it on the way to `value`.
fn passed<'g>(
    graph: &'g Graph<'g>,
    value: &'g str,
) -> impl Iterator<Item = (Option<NodeId>, &'g str)> {
    let before = |&(_, value): &(Option<NodeId>, &'g str)| {
        let (id, node) = graph.producer(value)?;
        let known = ["Cast", "Gather", "Transpose"];
        let passes = is_alias(node) || known.iter().any(|op| is_op(node, op));
        let input = node.input.first().filter(|_| passes)?;
        Some((Some(id), input.as_str()))
    };
    std::iter::successors(Some((None, value)), before).take(MOST_PASSED)
}

/// Makes the node `reader` read `value` first.
fn read(graph: &mut GraphProto, reader: NodeId, value: String) {
    let node = graph.node.get_mut(reader.0);
    if let Some(input) = node.and_then(|node| node.input.first_mut()) {
        *input = value;
    }
}

/// The declared size of the sequence axis of `rows`.
fn axis_of<'g>(graph: &'g mut GraphProto, rows: &NewRows) -> Option<&'g mut Dimension> {
    let output = graph.output.iter_mut().find(|o| o.name() == rows.present)?;
    output.sizes_mut()?.get_mut(rows.axis)
}
