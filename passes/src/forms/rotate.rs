//! Copies of the exporter's RoPE nodes for other rows and other positions.

use std::collections::HashMap;

use crate::facts::Facts;
use crate::forms::builder::Builder;
use crate::graph::build::NewSize;
use crate::graph::{Graph, NodeId, is_op, label};
use crate::onnx::{NodeProto, tensor_proto::DataType};
use crate::recognize::rotation::{Positions, PositionsShape, Rotation};
use crate::recognize::site::Cache;

/// The attention mask: the graph input [B, S] that marks tokens.
fn mask<'g>(graph: &Graph<'g>, facts: &Facts, keys: &Cache) -> Option<&'g str> {
    let length = facts.shape(&keys.joined)?.get(2)?;
    let fits = |name: &&str| {
        facts
            .shape(name)
            .is_some_and(|s| s.len() == 2 && s.get(1) == Some(length))
    };
    // Found by its usual name, because its second dimension may have a symbol that is not known to equal the caches'
    // length.
    let named = |name: &&str| {
        let own = !name.contains("encoder") || name.contains("decoder");
        let ranks = facts.shape(name).map(<[_]>::len);
        name.contains("attention_mask") && own && ranks == Some(2)
    };
    let inputs = || {
        let names = graph.reachable_inputs();
        names.filter(|n| graph.input(n).is_some())
    };
    inputs().find(named).or_else(|| inputs().find(fits))
}

impl Builder<'_> {
    /// Copies of the nodes of `rotation` that rotate `rows` at all positions, and the name of the result.
    pub fn rotate(&mut self, rotation: &Rotation, rows: &str) -> Option<(Vec<NodeProto>, String)> {
        let (mut nodes, mut names) = (Vec::new(), HashMap::new());
        let mut copied: Vec<&NodeId> = rotation.nodes.iter().collect();
        // Without a cache all rows are new, and the original positions and tables are used.
        if let Some(cache) = &self.site.key.cache {
            let mask = mask(self.graph, self.facts(), cache);
            if let (Some(mask), Some(_)) = (mask, &cache.past) {
                self.length_of_its_own(mask);
            }
            let (more, positions) = self.all_positions(&rotation.positions, mask, cache);
            nodes.extend(more);
            names.insert(rotation.positions.value.clone(), positions);
            copied.extend(&rotation.tables);
        }
        let (more, own) = match &rotation.part {
            Some(part) => {
                let channels = (part.first, part.first + part.size);
                self.channels("turned", rows, channels)
            }
            None => (Vec::new(), rows.to_owned()),
        };
        nodes.extend(more);
        names.insert(rotation.input.clone(), own);
        nodes.extend(self.copies(rotation, &copied, &mut names, "rotate")?);
        let turned = self.last_of(rotation, &names)?;
        let Some(part) = &rotation.part else {
            return Some((nodes, turned));
        };
        let size = self.site.key.size;
        let (before, first) = self.channels("before", rows, (0, part.first));
        let (after, last) = self.channels("after", rows, (part.first + part.size, size));
        nodes.extend(before.into_iter().chain(after));
        let joined = [&first, &turned, &last].map(String::as_str);
        let joined: Vec<&str> = joined.into_iter().filter(|v| !v.is_empty()).collect();
        let whole = self.unary("Concat", "rotate/whole", &joined);
        nodes.push(whole.with_int("axis", 3));
        Some((nodes, self.name("rotate/whole")))
    }

    /// Gives the length of `mask` its own symbol if another input has the same one. Some merged decoders declare mask
    /// and new tokens with one symbol although their lengths differ; a runtime that plans memory by symbols would then
    /// let positions, which are computed from the mask, overlap other tensors.
    fn length_of_its_own(&mut self, mask: &str) {
        let facts = self.facts();
        let length = |name: &str| facts.shape(name).filter(|s| s.len() == 2)?.get(1);
        let shared = |name: &str| name != mask && length(name) == length(mask);
        let symbolic = length(mask).is_some_and(|l| l.as_i64().is_none());
        if symbolic && self.graph.reachable_inputs().any(shared) {
            let dims = vec![NewSize::Keep, NewSize::Symbol(format!("{mask}_length"))];
            self.resize(mask, dims);
        }
    }

    /// The node that slices the channels `first..end` of each head of `rows` [B, G, S, d], and its output; no node and
    /// an empty name if the range is empty.
    fn channels(
        &mut self,
        part: &str,
        rows: &str,
        (first, end): (usize, usize),
    ) -> (Vec<NodeProto>, String) {
        if first >= end {
            return (Vec::new(), String::new());
        }
        let (from, to) = (self.vector(&[first as i64]), self.vector(&[end as i64]));
        let (axis, part) = (self.vector(&[3]), format!("rotate/{part}"));
        let slice = self.unary("Slice", &part, &[rows, &from, &to, &axis]);
        (vec![slice], self.name(&part))
    }

    /// Copies of `nodes`, which belong to `rotation`, with inputs replaced according to `names`. The outputs of the
    /// copies are added to `names`.
    pub fn copies(
        &mut self,
        rotation: &Rotation,
        nodes: &[&NodeId],
        names: &mut HashMap<String, String>,
        tag: &str,
    ) -> Option<Vec<NodeProto>> {
        let mut nodes = nodes.to_vec();
        nodes.sort();
        let mut copies = Vec::with_capacity(nodes.len());
        for id in nodes {
            let old = self.graph.node(*id)?;
            let mut copy = old.clone();
            copy.name = Some(self.name(&format!("{tag}/{}", label(old))));
            for input in &mut copy.input {
                if let Some(new) = names.get(input.as_str()) {
                    input.clone_from(new);
                }
            }
            if rotation.nodes.contains(id) && is_op(old, "Reshape") {
                let target = self.vector(&any_length(self.facts(), old)?);
                if let Some(shape) = copy.input.get_mut(1) {
                    *shape = target;
                }
                copy.attribute.retain(|a| a.name() != "allowzero");
            }
            if old.op_type() == "RotaryEmbedding" && !rotation.packed {
                // For rows with four axes the number of heads follows from the shape.
                copy.attribute.retain(|a| a.name() != "num_heads");
            }
            let heads = copy.attribute.iter_mut().find(|a| a.name() == "num_heads");
            if let (Some(attribute), "RotaryEmbedding") = (heads, old.op_type()) {
                attribute.i = Some(self.blocks() as i64);
            }
            for output in copy.output.iter_mut().filter(|o| !o.is_empty()) {
                let new = self.name(&format!("{tag}/{output}"));
                names.insert(output.clone(), new.clone());
                *output = new;
            }
            copies.push(copy);
        }
        Some(copies)
    }

    /// The output of the last copied node of `rotation`.
    pub fn last_of(&self, rotation: &Rotation, names: &HashMap<String, String>) -> Option<String> {
        let last = self.graph.node(*rotation.nodes.last()?)?;
        names.get(last.output.first()?).cloned()
    }

    /// The positions of all rows, in the shape and type of `of`.
    fn all_positions(
        &mut self,
        of: &Positions,
        mask: Option<&str>,
        keys: &Cache,
    ) -> (Vec<NodeProto>, String) {
        let int64 = DataType::Int64 as i64;
        let (zero, one) = (self.scalar(0), self.scalar(1));
        let part = |p: &str| format!("positions/{p}");
        let mut nodes = Vec::new();
        let mut last = match (of.shape, mask) {
            (PositionsShape::First, _) => self.vector(&[0]),
            (PositionsShape::Rows, Some(mask)) => {
                nodes.extend([
                    self.unary("Cast", &part("mask"), &[mask])
                        .with_int("to", int64),
                    self.unary("CumSum", &part("count"), &[&self.name(&part("mask")), &one]),
                    self.unary("Sub", &part("place"), &[&self.name(&part("count")), &one]),
                    // Left padding would get the position -1; the mask hides it.
                    self.unary("Max", &part("all"), &[&self.name(&part("place")), &zero]),
                ]);
                self.name(&part("all"))
            }
            _ => {
                let two = self.scalar(2);
                nodes.extend([
                    self.unary("Shape", &part("shape"), &[&keys.joined]),
                    self.unary("Gather", &part("S"), &[&self.name(&part("shape")), &two])
                        .with_int("axis", 0),
                    self.unary(
                        "Range",
                        &part("all"),
                        &[&zero, &self.name(&part("S")), &one],
                    ),
                ]);
                self.name(&part("all"))
            }
        };
        if matches!(
            (of.shape, mask),
            (PositionsShape::OneRow, _) | (PositionsShape::Rows, None)
        ) {
            let first = self.vector(&[0]);
            nodes.push(self.unary("Unsqueeze", &part("row"), &[&last, &first]));
            last = self.name(&part("row"));
        }
        let wanted = self.facts().elem_type(&of.value).map_or(int64, i64::from);
        if wanted != int64 {
            let cast = self.unary("Cast", &part("cast"), &[&last]);
            nodes.push(cast.with_int("to", wanted));
            last = self.name(&part("cast"));
        }
        (nodes, last)
    }
}

/// The target shape of a `Reshape` that merges or splits the last axes, for any number of positions, and of heads where these
/// are merged with channels or split from them.
fn any_length(facts: &Facts, node: &NodeProto) -> Option<Vec<i64>> {
    let from = facts.shape(node.input.first()?)?;
    let to = facts.shape(node.output.first()?)?;
    let kept = from.iter().zip(to).take_while(|(a, b)| a == b).count();
    let kept = kept.min(to.len().checked_sub(1)?).min(3);
    let mut target = vec![0; kept];
    for size in to.get(kept..)? {
        target.push(size.as_i64()?);
    }
    if let (2, Some(heads)) = (kept, target.get_mut(2)) {
        *heads = -1;
    }
    Some(target)
}
