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

use std::collections::{HashMap, HashSet};

use crate::facts::shapes::axis;
use crate::graph::build::{int64_vector, node, shared_constant, vector_name};
use crate::graph::order::sort;
use crate::graph::rename::rename_reads;
use crate::graph::{Graph, NodeId, attribute, input_at, int_attribute, is_alias, is_op, output_at};
use crate::onnx::{GraphProto, NodeProto, TensorProto, ValueInfoProto};

/// The axes of one value in another order: axis i is the axis `order[i]` of the value.
type Order = [usize; 4];

const IN_ORDER: Order = [0, 1, 2, 3];

/// A cache in another order than [B, G, length, d].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laid {
    /// The past input.
    pub past: String,
    /// The present output.
    pub present: String,
    /// B, G, length and d as axes of the cache.
    pub axes: [usize; 4],
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
    values: HashSet<&'g str>,
    /// The nodes that pass them on.
    nodes: HashSet<NodeId>,
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
        reorder(graph, &cache.present, back).ok_or(cache.present)?;
    }
    sort(graph);
    Ok(())
}

fn inverse(order: Order) -> Order {
    let mut inverse = Order::default();
    for (to, from) in order.into_iter().enumerate() {
        if let Some(place) = inverse.get_mut(from) {
            *place = to;
        }
    }
    inverse
}

/// `order` of what has the axes `first`: the axes of the original value in the order of the result.
fn composed(first: Order, order: Order) -> Order {
    order.map(|at| first.get(at).copied().unwrap_or(at))
}

/// The way of the cache with the output `present`, if a `Concat` puts new rows behind a past input of four axes, in the order of
/// the cache or between two transposes.
fn way<'g>(graph: &'g Graph<'g>, present: &'g str) -> Option<Way<'g>> {
    let (mut values, mut nodes) = (HashSet::new(), HashSet::new());
    let first = passed(graph, present, &mut values, &mut nodes)?;
    let (end, node) = graph.producer(first)?;
    let turned = order_of(node).filter(|_| is_op(node, "Transpose"));
    let mut inner = (HashSet::new(), HashSet::new());
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
        end,
    })
}

/// The value of which `value` is made by aliases, casts and the selection of beams. All values and nodes on the way are added.
fn passed<'g>(
    graph: &'g Graph<'g>,
    mut value: &'g str,
    values: &mut HashSet<&'g str>,
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
        // An output may declare no shape.
        if let (true, Some(sizes)) = (ends.iter().any(|end| end == info.name()), info.sizes_mut()) {
            let old = sizes.clone();
            *sizes = order
                .iter()
                .filter_map(|&axis| old.get(axis).cloned())
                .collect();
        }
    }
    Some(())
}

/// `node` with its axis `axis` where it is now: axis i of the old order is axis `back[i]`.
fn along(node: &NodeProto, back: Order) -> Option<NodeProto> {
    let moved = *back.get(axis(int_attribute(node, "axis", 0), 4)?)?;
    let mut node = node.clone();
    node.attribute.retain(|a| a.name() != "axis");
    Some(node.with_int("axis", moved as i64))
}

/// The changes of a graph.
#[derive(Default)]
struct Edits {
    replaced: Vec<(NodeId, NodeProto)>,
    /// Values, each with the value that its readers read instead. The nodes that make them are left out.
    redirected: HashMap<String, String>,
    added: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Edits {
    /// Gives input `at` of `reader` the old order of `value`, whose axes are now in another one: axis i of the old order is its
    /// axis `back[i]`.
    fn read(
        &mut self,
        graph: &Graph,
        (id, reader): (NodeId, &NodeProto),
        (at, value): (usize, &str),
        back: Order,
    ) -> Option<()> {
        let mut node = self.taken(id, reader);
        if is_op(reader, "Transpose") {
            let order = composed(back, order_of(reader)?);
            let output = output_at(reader, 0)?;
            if order == IN_ORDER && !graph.is_output(output) {
                let (output, value) = (output.to_owned(), value.to_owned());
                self.redirected.insert(output, value);
                return Some(());
            }
            set_order(&mut node, order);
        } else if is_op(reader, "Shape") {
            node = self.shape(graph, reader, back)?;
        } else {
            *node.input.get_mut(at)? = self.transposed(graph, value, back);
        }
        self.replaced.push((id, node));
        Some(())
    }

    /// [`Self::read`] for a subgraph of `reader` that captures `value`.
    fn capture(
        &mut self,
        graph: &Graph,
        (id, reader): (NodeId, &NodeProto),
        value: &str,
        back: Order,
    ) {
        let mut node = self.taken(id, reader);
        let read = self.transposed(graph, value, back);
        rename_reads(&mut node, &HashMap::from([(value.to_owned(), read)]));
        self.replaced.push((id, node));
    }

    /// The node `id` of the graph, `node`, with the changes so far.
    fn taken(&mut self, id: NodeId, node: &NodeProto) -> NodeProto {
        let known = self.replaced.iter().position(|(other, _)| *other == id);
        known.map_or_else(|| node.clone(), |known| self.replaced.remove(known).1)
    }

    /// The node in place of the `Shape` node `reader`.
    fn shape(&mut self, graph: &Graph, reader: &NodeProto, back: Order) -> Option<NodeProto> {
        let end = |name: &str, default: i64| {
            let at = int_attribute(reader, name, default);
            (if at < 0 { at + 4 } else { at }).clamp(0, 4) as usize
        };
        let axes = back.get(end("start", 0)..end("end", 4))?;
        let axes: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
        let (indices, new) = shared_constant(graph, int64_vector(&vector_name(&axes), &axes));
        let is_new = |new: &TensorProto| self.constants.iter().all(|t| t.name() != new.name());
        let new = new.filter(is_new);
        self.constants.extend(new);
        let output = output_at(reader, 0)?;
        let all = self.free(graph, &format!("{output}/all"));
        let read = input_at(reader, 0)?;
        self.added.push(node("Shape", &all, &[read], &[&all]));
        let chosen = node("Gather", reader.name(), &[&all, &indices], &[output]);
        Some(chosen.with_int("axis", 0))
    }

    /// The name of `value`, which no edit changes, with its axes in `order`: made of what a `Transpose` makes it of.
    fn merged(&mut self, graph: &Graph, value: &str, order: Order) -> String {
        let maker = graph.producer(value).map(|(_, maker)| maker);
        let turned = maker.filter(|maker| is_op(maker, "Transpose"));
        match turned.and_then(|t| Some((input_at(t, 0)?, order_of(t)?))) {
            Some((source, first)) => self.transposed(graph, source, composed(first, order)),
            None => self.transposed(graph, value, order),
        }
    }

    /// The name of `value` with its axes in `order`; a node that makes it is added.
    fn transposed(&mut self, graph: &Graph, value: &str, order: Order) -> String {
        if order == IN_ORDER {
            return value.to_owned();
        }
        let made = |n: &&NodeProto| {
            input_at(n, 0) == Some(value) && is_op(n, "Transpose") && order_of(n) == Some(order)
        };
        if let Some(known) = self.added.iter().find(made).and_then(|n| output_at(n, 0)) {
            return known.to_owned();
        }
        let name = self.free(graph, &format!("{value}/in_order"));
        let mut turned = node("Transpose", &name, &[value], &[&name]);
        set_order(&mut turned, order);
        self.added.push(turned);
        name
    }

    /// Makes the changes in `graph`.
    fn apply(self, graph: &mut GraphProto) -> Option<()> {
        for (NodeId(at), node) in self.replaced {
            *graph.node.get_mut(at)? = node;
        }
        let is_left_out = |n: &NodeProto| n.output.iter().any(|o| self.redirected.contains_key(o));
        graph.node.retain(|n| !is_left_out(n));
        graph.node.extend(self.added);
        graph.initializer.extend(self.constants);
        let nodes = graph.node.iter_mut();
        nodes.for_each(|node| rename_reads(node, &self.redirected));
        Some(())
    }

    /// A name that begins with `name` and neither the graph nor an added node has.
    fn free(&self, graph: &Graph, name: &str) -> String {
        let mut name = name.to_owned();
        while graph.is_taken(&name) || self.added.iter().any(|n| n.output.contains(&name)) {
            name.push('+');
        }
        name
    }
}

/// The order of the four axes that the `Transpose` `node` gives.
fn order_of(node: &NodeProto) -> Option<Order> {
    let Some(perm) = attribute(node, "perm") else {
        return Some([3, 2, 1, 0]);
    };
    let order: Vec<usize> = perm
        .ints
        .iter()
        .filter_map(|&axis| usize::try_from(axis).ok())
        .collect();
    order.try_into().ok()
}

/// Makes the `Transpose` `node` give `order`; an alias if that is the order of its input.
fn set_order(node: &mut NodeProto, order: Order) {
    let perm = order.map(|axis| axis as i64);
    node.attribute.retain(|a| a.name() != "perm");
    if order == IN_ORDER {
        node.op_type = Some("Identity".to_owned());
    } else {
        *node = std::mem::take(node).with_ints("perm", &perm);
    }
}
