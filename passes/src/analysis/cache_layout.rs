//! Caches whose axes are in another order than [B, G, length, d].
//!
//! ```text
//! [B, G, d, length]   keys that are cached transposed, so that the score product reads them as they are
//! [B, length, G, d]   heads behind positions, as projections give them
//! [length, B, G, d]   positions first
//! ```
//!
//! The axis along which the `Concat` puts new rows tells which one it is. [`standard`] brings the caches of a graph into the
//! order [B, G, length, d] for the analysis, with the transposes that the readers need, and [`give_back`] returns the caches of
//! the rewritten graph to the order that the caller feeds. Transposes that meet are merged: where the score product reads
//! transposed keys as they are, it does so in the form absorbed as well, with a cache in floating point. Other forms and casts
//! have a `Transpose` of the cache in each step.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::analysis::reordered::{Edits, IN_ORDER, Order, composed, inverse, order_of, set_order};
use crate::facts::shapes::axis;
use crate::graph::build::node;
use crate::graph::order::sort;
use crate::graph::rename::{free, rename};
use crate::graph::{Graph, NodeId, input_at, int_attribute, is_alias, is_op};
use crate::onnx::{GraphProto, NodeProto, ValueInfoProto};

/// A cache in another order than [B, G, length, d].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laid {
    /// The past input.
    pub past: String,
    /// The present output.
    pub present: String,
    /// B, G, length and d as axes of the cache.
    pub axes: [usize; 4],
    /// Whether the graph transposes it at the interface, and joins past and new rows in the usual order.
    pub turned: bool,
}

/// A graph with caches [B, G, length, d], and the caches that have another order at its interface.
#[derive(Debug, Clone)]
pub struct Standard {
    /// The graph.
    pub graph: GraphProto,
    /// The caches.
    pub caches: Vec<Laid>,
}

/// The way of a cache between the interface of the graph and the node that joins past and new rows.
struct Way<'g> {
    past: &'g str,
    /// B, G, length and d as axes of the cache.
    axes: Order,
    /// The values that have these axes, from the past input and to the present.
    values: BTreeSet<&'g str>,
    /// The nodes that pass them on.
    nodes: HashSet<NodeId>,
    /// Whether they lie outside of two transposes.
    turned: bool,
    /// The node that makes the first value on the way to the present: the `Concat`, or a `Transpose` behind it.
    end: NodeId,
}

/// The caches of `graph` in another order than [B, G, length, d].
#[must_use]
pub fn laid(graph: &GraphProto) -> Vec<Laid> {
    let view = Graph::new(graph);
    let laid = |output: &ValueInfoProto| {
        let way = way(&view, output.name()).filter(|way| way.axes != IN_ORDER)?;
        Some(Laid {
            past: way.past.to_owned(),
            present: output.name().to_owned(),
            axes: way.axes,
            turned: way.turned,
        })
    };
    graph.output.iter().filter_map(laid).collect()
}

/// `graph` with its `caches` in the order [B, G, length, d]; `None` if there are none that can be brought into it.
#[must_use]
pub fn standard(graph: &GraphProto, caches: Vec<Laid>) -> Option<Standard> {
    if caches.is_empty() {
        return None;
    }
    let mut made = graph.clone();
    let caches: Vec<Laid> = caches
        .into_iter()
        .filter(|cache| reorder(&mut made, &cache.present, cache.axes).is_some())
        .collect();
    if caches.is_empty() {
        return None;
    }
    sort(&mut made);
    Some(Standard {
        graph: made,
        caches,
    })
}

/// Returns the `caches` of `graph`, a rewritten graph, to their order.
///
/// # Errors
/// The first present that is not made by a `Concat` of past and new rows.
pub fn give_back(graph: &mut GraphProto, caches: Vec<Laid>) -> Result<(), String> {
    for cache in caches {
        let back = inverse(cache.axes);
        match cache.turned {
            true => turn(graph, &cache),
            false => reorder(graph, &cache.present, back).ok_or(cache.present)?,
        }
    }
    sort(graph);
    Ok(())
}

/// The way of the cache with the output `present`, if a `Concat` puts new rows behind a past input of four axes, in the order of
/// the cache or between two transposes.
fn way<'g>(graph: &'g Graph<'g>, present: &'g str) -> Option<Way<'g>> {
    let (mut values, mut nodes) = (BTreeSet::new(), HashSet::new());
    let first = passed(graph, present, &mut values, &mut nodes)?;
    let (end, node) = graph.producer(first)?;
    let turned = order_of(node).filter(|_| is_op(node, "Transpose"));
    let mut inner = (BTreeSet::new(), HashSet::new());
    let join = match turned {
        Some(_) => {
            let joined = passed(graph, input_at(node, 0)?, &mut inner.0, &mut inner.1)?;
            graph.producer(joined)?.1
        }
        None => node,
    };
    let joined = input_at(join, 0).filter(|_| is_op(join, "Concat") && join.input.len() == 2)?;
    let past = match turned {
        Some(turned) => {
            let back = passed(graph, joined, &mut inner.0, &mut inner.1)?;
            let (_, back) = graph.producer(back)?;
            if !is_op(back, "Transpose") || order_of(back) != Some(inverse(turned)) {
                return None;
            }
            passed(graph, input_at(back, 0)?, &mut values, &mut nodes)?
        }
        None => passed(graph, joined, &mut values, &mut nodes)?,
    };
    let rank = graph.input(past)?.sizes()?.len();
    let along = axis(int_attribute(join, "axis", 0), rank).filter(|_| rank == 4)?;
    let axes = match (turned, along) {
        (Some(turned), 2) => inverse(turned),
        (Some(_), _) => return None,
        (None, 3) => [0, 1, 3, 2],
        (None, 1) => [0, 2, 1, 3],
        (None, 0) => [1, 2, 0, 3],
        (None, _) => IN_ORDER,
    };
    Some(Way {
        past,
        axes,
        values,
        nodes,
        turned: turned.is_some(),
        end,
    })
}

/// The value of which `value` is made by aliases, casts and the selection of beams. All values and nodes on the way are added.
fn passed<'g>(
    graph: &'g Graph<'g>,
    mut value: &'g str,
    values: &mut BTreeSet<&'g str>,
    nodes: &mut HashSet<NodeId>,
) -> Option<&'g str> {
    while values.insert(value) {
        let Some((id, node)) = graph.producer(value) else {
            return Some(value);
        };
        if !(is_alias(node) || is_op(node, "Cast") || is_op(node, "Gather")) {
            return Some(value);
        }
        nodes.insert(id);
        value = input_at(node, 0)?;
    }
    None
}

/// Brings the cache with the output `present` into another order: its new axis i is the old axis `order[i]`. Readers beside the
/// way of the cache get what they read before. `None`, with `graph` as it was, if one of them cannot.
fn reorder(graph: &mut GraphProto, present: &str, order: Order) -> Option<()> {
    let back = inverse(order);
    let view = Graph::new(graph);
    let way = way(&view, present)?;
    let mut edits = Edits::default();
    for &value in &way.values {
        if view.is_output(value) && value != present {
            return None;
        }
        for usage in view.uses(value) {
            let reader = (usage.node, view.node(usage.node)?);
            let passes = usage.node == way.end || way.nodes.contains(&usage.node);
            match usage.input {
                Some(0) if passes => {}
                Some(at) => edits.read(&view, reader, (at, value), back)?,
                None => edits.capture(&view, reader, value, back),
            }
        }
    }
    for &id in &way.nodes {
        let passing = view.node(id)?;
        if is_op(passing, "Gather") {
            let moved = along(passing, back)?;
            edits.replaced.push((id, moved));
        }
    }
    let mut end = view.node(way.end)?.clone();
    if is_op(&end, "Concat") {
        let rows = edits.merged(&view, input_at(&end, 1)?, order);
        *end.input.get_mut(1)? = rows;
        end = along(&end, back)?;
    } else {
        let turned = order_of(&end)?;
        set_order(&mut end, composed(turned, order));
    }
    edits.replaced.push((way.end, end));
    let changed: HashSet<String> = way.values.iter().map(|&value| value.to_owned()).collect();
    let ends = [way.past.to_owned(), present.to_owned()];
    edits.apply(graph)?;
    graph
        .value_info
        .retain(|info| !changed.contains(info.name()));
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        if ends.iter().any(|end| end == info.name()) {
            arrange(info, order);
        }
    }
    Some(())
}

/// Puts transposes at the interface of `graph`, between which the `cache` is in the usual order.
fn turn(graph: &mut GraphProto, cache: &Laid) {
    let ends = [
        (&cache.past, cache.axes),
        (&cache.present, inverse(cache.axes)),
    ];
    for (end, order) in ends {
        let inner = free(&Graph::new(graph), &format!("{end}/in_order"));
        rename(graph, &HashMap::from([(end.clone(), inner.clone())]));
        let (from, to) = match end == &cache.past {
            true => (end, &inner),
            false => (&inner, end),
        };
        let mut turned = node("Transpose", to, &[from], &[to]);
        set_order(&mut turned, order);
        graph.node.push(turned);
        for info in graph.input.iter_mut().chain(&mut graph.output) {
            if info.name() == end {
                arrange(info, inverse(cache.axes));
            }
        }
    }
}

/// Brings the sizes of `info` into `order`, if it declares a shape.
fn arrange(info: &mut ValueInfoProto, order: Order) {
    if let Some(sizes) = info.sizes_mut() {
        let old = sizes.clone();
        let ordered = order.iter().filter_map(|&axis| old.get(axis).cloned());
        *sizes = ordered.collect();
    }
}

/// `node` with its axis `axis` where it is now: axis i of the old order is axis `back[i]`.
fn along(node: &NodeProto, back: Order) -> Option<NodeProto> {
    let moved = *back.get(axis(int_attribute(node, "axis", 0), 4)?)?;
    let mut node = node.clone();
    node.attribute.retain(|a| a.name() != "axis");
    Some(node.with_int("axis", moved as i64))
}
