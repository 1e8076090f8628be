//! Recognition of KV caches, and the reasons why something is not one.

use std::collections::HashSet;

use crate::facts::{Facts, shape_text as text};
use crate::graph::{Graph, NodeId, is_op, label};
use crate::onnx::NodeProto;
use crate::recognize::append::{Append, CacheKind, kind};
use crate::recognize::candidate::is_product;
use crate::recognize::latent::{appends, cache_behind};
use crate::recognize::pass_through::{self, makes};
use crate::recognize::reject::{Operand, Reason};
use crate::recognize::site::Cache;
use crate::recognize::trail::Trail;
use crate::recognize::unknown_shape::unknown_shape;

/// A reason and the node that it is about.
pub type Refused = (NodeId, Reason);

/// Operators that write rows into a buffer.
const WRITERS: [&str; 3] = ["ScatterND", "ScatterElements", "TensorScatter"];

/// Most values that the search for a cache visits.
const FARTHEST: usize = 2000;

/// Checks that a cache joins new rows along the sequence axis, that its present is an output of the graph, and that no
/// other node reads its past.
pub fn with_past(
    graph: &Graph,
    facts: &Facts,
    append: &Append,
    role: Operand,
) -> Result<Cache, Refused> {
    if let Some(reason) = unknown_shape(graph, facts, role, append.past) {
        return Err((append.node, reason));
    }
    if !append.is_along_the_sequence(facts) {
        let reason = Reason::CacheAxis {
            operand: role,
            past: append.past.to_owned(),
            axis: append.axis,
        };
        return Err((append.node, reason));
    }
    if !append.fits(facts) {
        let shape = |value: &str| {
            facts
                .shape(value)
                .map_or_else(|| "unknown".to_owned(), text)
        };
        let reason = Reason::OperandShape {
            operand: role,
            value: append.new.to_owned(),
            found: shape(append.new),
            expected: format!("rows of the cache {}", shape(append.past)),
        };
        return Err((append.node, reason));
    }
    let Some(returned) = pass_through::present(graph, facts, append.joined) else {
        let reason = Reason::CacheNotReturned {
            operand: role,
            past: append.past.to_owned(),
            present: append.joined.to_owned(),
        };
        return Err((append.node, reason));
    };
    let received = owned(&append.received);
    // Besides the node that joins, only `Shape` may read the past.
    for name in received.iter().map(String::as_str).chain([append.past]) {
        if graph.is_output(name) {
            let reason = Reason::OutputInside {
                operand: role,
                value: name.to_owned(),
            };
            return Err((append.node, reason));
        }
        for usage in graph.uses(name) {
            let asks = graph.node(usage.node).is_some_and(|n| is_op(n, "Shape"));
            let passes = usage.input == Some(0) && makes(graph, usage.node, &received);
            let harmless = usage.input.is_some() && (asks || passes);
            if usage.node != append.node && !harmless {
                return Err((usage.node, second_reader(graph, role, name, usage.node)));
            }
        }
    }
    Ok(Cache {
        kind: append.kind,
        packed: append.packed.map(str::to_owned),
        past: Some(append.past.to_owned()),
        received,
        joined: append.joined.to_owned(),
        returned: owned(returned.get(1..).unwrap_or_default()),
        append: append.node,
    })
}

fn owned(values: &[&str]) -> Vec<String> {
    values.iter().map(|&v| v.to_owned()).collect()
}

/// The cache of a graph without a past input (prefill): the first value of the trail that is, or is passed on to, an
/// output of the graph. Returns its position in the trail.
pub fn filled(graph: &Graph, facts: &Facts, trail: &Trail) -> Option<(usize, Cache)> {
    let mut values = trail.values.iter();
    let (start, returned) = match values.position(|value| graph.is_output(value)) {
        Some(start) => (start, Vec::new()),
        None => {
            let passed_on = |value: &&str| {
                let way = pass_through::present(graph, facts, value)?;
                Some(owned(way.get(1..)?))
            };
            let ways = trail.values.iter().map(passed_on).enumerate();
            ways.filter_map(|(start, way)| Some((start, way?))).next()?
        }
    };
    let joined = *trail.values.get(start)?;
    let (append, _) = graph.producer(joined)?;
    let cache = Cache {
        kind: CacheKind::Growing,
        packed: None,
        past: None,
        received: Vec::new(),
        joined: joined.to_owned(),
        returned,
        append,
    };
    Some((start, cache))
}

/// Whether `value` may be computed from a cache: from a graph input that other rows join or that has four axes. The search
/// does not go beyond the product of another attention; a search that is too long finds a cache.
pub fn may_be_cached(graph: &Graph, facts: &Facts, value: &str) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if !seen.insert(value) {
            continue;
        }
        if seen.len() > FARTHEST {
            return true;
        }
        if graph.input(value).is_some() && facts.shape(value).is_none_or(|shape| shape.len() > 3) {
            return true;
        }
        let Some((_, node)) = graph.producer(value) else {
            continue;
        };
        let joins = kind(node).is_some() || WRITERS.iter().any(|op| is_op(node, op));
        let first = node.input.first().filter(|_| joins);
        if first.is_some_and(|first| pass_through::past(graph, facts, first).is_some()) {
            return true;
        }
        let product = is_op(node, "MatMul") && is_product(graph, facts, node);
        if !product && !is_op(node, "Shape") {
            open.extend(node.input.iter().map(String::as_str));
        }
    }
    false
}

/// The reason why an operand whose length is not the query's is not a cache with a past.
pub fn not_growing(
    graph: &Graph,
    facts: &Facts,
    trail: &Trail,
    role: Operand,
    end: NodeId,
) -> Refused {
    let source = trail.values.first().copied().unwrap_or_default();
    let produced = graph.producer(source);
    // A scale does not matter where no cache is scaled.
    if let Some(reason) = trail
        .stopped
        .as_ref()
        .filter(|_| may_be_cached(graph, facts, source))
    {
        return (produced.map_or(end, |(id, _)| id), reason.clone());
    }
    let Some((id, node)) = produced else {
        let reason = match graph.is_made_outside(source) {
            true => Reason::CacheForm {
                operand: role,
                op: "a node outside the branch that reads it".to_owned(),
                value: source.to_owned(),
            },
            false => cross(role, source),
        };
        return (end, reason);
    };
    if is_quantized(graph, trail) {
        let reason = Reason::Quantized {
            operand: role,
            op: node.op_type().to_owned(),
        };
        return (id, reason);
    }
    if let Some(behind) = cache_behind(graph, facts, source, &appends) {
        let reason = match behind.is_latent() {
            true => Reason::AlreadyLatent {
                operand: role,
                past: behind.past,
            },
            false => Reason::ChangedAfterCaching {
                operand: role,
                past: behind.past,
                op: node.op_type().to_owned(),
            },
        };
        return (id, reason);
    }
    // The length of a value of unknown shape may be that of the query.
    if let Some(reason) = unknown_shape(graph, facts, role, source) {
        return (id, reason);
    }
    let builds = ["Concat", "Slice", "Where", "Pad"];
    match builds.iter().any(|op| is_op(node, op)) {
        true => (id, form(graph, source, node, role)),
        false => (id, cross(role, source)),
    }
}

/// Whether the source of the operand is the output of a `DequantizeLinear`.
pub fn is_quantized(graph: &Graph, trail: &Trail) -> bool {
    let source = trail.values.first().and_then(|value| graph.producer(value));
    source.is_some_and(|(_, node)| is_op(node, "DequantizeLinear"))
}

/// The reason why the source of an operand is not a cache with a past: it is written into a buffer that is not a
/// graph input, or by an operator that need not write whole rows. `None` if it is not such a buffer.
pub fn buffered(graph: &Graph, trail: &Trail, role: Operand) -> Option<Refused> {
    let source = trail.values.first()?;
    let (id, node) = graph.producer(source)?;
    let written = WRITERS.iter().any(|op| is_op(node, op));
    written.then(|| (id, form(graph, source, node, role)))
}

fn form(graph: &Graph, source: &str, node: &NodeProto, role: Operand) -> Reason {
    Reason::CacheForm {
        operand: role,
        op: built_by(graph, node),
        value: source.to_owned(),
    }
}

/// How `node` computes a cache, for messages. For a `Concat` this names the producer of the input that should be the
/// past.
fn built_by(graph: &Graph, node: &NodeProto) -> String {
    if WRITERS.iter().any(|op| is_op(node, op)) {
        return format!(
            "{} '{}', which writes into a buffer of one length (a static cache)",
            node.op_type(),
            label(node)
        );
    }
    let first = node.input.first().filter(|_| is_op(node, "Concat"));
    match first.and_then(|value| graph.producer(value)) {
        Some((_, maker)) if is_op(maker, "Slice") => format!(
            "Concat behind Slice '{}', which drops the oldest rows (a window or ring cache)",
            label(maker)
        ),
        Some((_, maker)) => format!(
            "Concat whose first input is made by {} '{}'",
            maker.op_type(),
            label(maker)
        ),
        None => node.op_type().to_owned(),
    }
}

fn cross(role: Operand, source: &str) -> Reason {
    Reason::CrossAttention {
        operand: role,
        value: source.to_owned(),
    }
}

/// The reason that node `reader` also reads `value`.
pub fn second_reader(graph: &Graph, role: Operand, value: &str, reader: NodeId) -> Reason {
    let reader = graph
        .node(reader)
        .map_or_else(String::new, |n| format!("{} '{}'", n.op_type(), label(n)));
    Reason::SecondReader {
        operand: role,
        value: value.to_owned(),
        reader,
    }
}
