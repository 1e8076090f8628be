//! The changes of a graph in which the axes of a value have another order.

use std::collections::HashMap;

use crate::graph::build::{int64_vector, node, shared_constant, vector_name};
use crate::graph::rename::rename_reads;
use crate::graph::{Graph, NodeId, attribute, input_at, int_attribute, is_op, output_at};
use crate::onnx::{GraphProto, NodeProto, TensorProto};

/// The axes of one value in another order: axis i is the axis `order[i]` of the value.
pub type Order = [usize; 4];

/// The order in which nothing is moved.
pub const IN_ORDER: Order = [0, 1, 2, 3];

/// The order that undoes `order`.
pub fn inverse(order: Order) -> Order {
    let mut inverse = Order::default();
    for (to, from) in order.into_iter().enumerate() {
        if let Some(place) = inverse.get_mut(from) {
            *place = to;
        }
    }
    inverse
}

/// `order` of what has the axes `first`: the axes of the original value in the order of the result.
pub fn composed(first: Order, order: Order) -> Order {
    order.map(|at| first.get(at).copied().unwrap_or(at))
}

/// The changes of a graph.
#[derive(Default)]
pub struct Edits {
    /// Nodes in place of others.
    pub replaced: Vec<(NodeId, NodeProto)>,
    /// Values, each with the value that its readers read instead. The nodes that make them are left out.
    redirected: HashMap<String, String>,
    added: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Edits {
    /// Gives input `at` of `reader` the old order of `value`, whose axes are now in another one: axis i of the old order is its
    /// axis `back[i]`.
    pub fn read(
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
    pub fn capture(
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
    pub fn merged(&mut self, graph: &Graph, value: &str, order: Order) -> String {
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
    pub fn apply(self, graph: &mut GraphProto) -> Option<()> {
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
pub fn order_of(node: &NodeProto) -> Option<Order> {
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
pub fn set_order(node: &mut NodeProto, order: Order) {
    let perm = order.map(|axis| axis as i64);
    node.attribute.retain(|a| a.name() != "perm");
    if order == IN_ORDER {
        node.op_type = Some("Identity".to_owned());
    } else {
        *node = std::mem::take(node).with_ints("perm", &perm);
    }
}
