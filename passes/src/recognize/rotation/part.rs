//! Rotated channels that are made apart from the channels they are joined with, as DeepSeek's models make them: one head
//! is rotated, given to all, and set behind what each head has of its own.

use std::collections::BTreeSet;

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, int_attribute, is_op};
use crate::onnx::NodeProto;
use crate::recognize::rotation::{Rotation, Rows, ancestors, followed};

/// Channels of each head that are rotated by themselves, and how they join the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The first of them.
    pub first: usize,
    /// How many they are.
    pub size: usize,
    /// The rotated channels [B, 1 or G, T, size].
    turned: String,
    /// The nodes that make the keys [B, G, T, d] of them, in graph order.
    join: Vec<NodeId>,
}

/// The rotation of `rows` where it works on a part of the channels only, and the others are made without it.
pub fn part(
    graph: &Graph,
    facts: &Facts,
    rows: &Rows,
    moved: &BTreeSet<NodeId>,
) -> Option<Rotation> {
    let (concat, node) = graph.producer(rows.value)?;
    if !is_op(node, "Concat") || !matches!(int_attribute(node, "axis", 0), -1 | 3) {
        return None;
    }
    let size_of = |value: &str| usize::try_from(facts.shape(value)?.get(3)?.as_i64()?).ok();
    let is_moved = |value: &String| {
        let made = graph.producer(value);
        made.is_some_and(|(id, _)| moved.contains(&id))
    };
    let at = node.input.iter().position(is_moved)?;
    let (before, after) = (node.input.get(..at)?, node.input.get(at + 1..)?);
    if after.iter().any(is_moved) {
        return None;
    }
    let first = before.iter().map(|v| size_of(v)).sum::<Option<usize>>()?;
    let mut turned = node.input.get(at)?;
    let (mut heads, mut join) = (rows.heads, vec![concat]);
    if let Some((id, expand)) = graph.producer(turned).filter(|(_, n)| is_op(n, "Expand")) {
        turned = expand.input.first()?;
        // Whatever is done to a single head fits any number of heads.
        heads = 1;
        join.insert(0, id);
    }
    let size = size_of(turned)?;
    let apart = Rows {
        value: turned,
        heads,
        size,
        past: rows.past.clone(),
    };
    let rotation = followed(graph, facts, &apart, &ancestors(graph, turned)).ok()?;
    (!rotation.packed && rotation.part.is_none()).then(|| Rotation {
        part: Some(Part {
            first,
            size,
            turned: turned.clone(),
            join,
        }),
        whole: false,
        ..rotation
    })
}

impl Rotation {
    /// The rows before the rotation, with the nodes that make them where they are not there yet; `name` gives new names.
    pub fn rows(
        &self,
        graph: &Graph,
        name: &dyn Fn(&str) -> String,
    ) -> Option<(Vec<NodeProto>, String)> {
        let Some(part) = &self.part else {
            return Some((Vec::new(), self.input.clone()));
        };
        let (mut nodes, mut known) = (Vec::new(), (part.turned.clone(), self.input.clone()));
        for id in &part.join {
            let mut node = graph.node(*id)?.clone();
            for input in node.input.iter_mut().filter(|i| **i == known.0) {
                input.clone_from(&known.1);
            }
            let output = node.output.first_mut()?;
            known = (output.clone(), name(&format!("unrotated/{output}")));
            output.clone_from(&known.1);
            node.name = Some(known.1.clone());
            nodes.push(node);
        }
        Some((nodes, known.1))
    }
}
