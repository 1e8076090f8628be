//! A rotation as it is found, and the rows before it.

use crate::graph::{Graph, NodeId};
use crate::onnx::NodeProto;
use crate::recognize::rotation::positions::Positions;

/// The rotation of the keys of one attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The rows before it: [B, G, T, d], or [B, T, G*d] where heads are split afterwards; of `part`, where there is one.
    pub input: String,
    /// Whether `input` is [B, T, G*d].
    pub packed: bool,
    /// Whether pairs are neighbours; else a channel of the first half goes with one of the second.
    pub interleaved: bool,
    /// Whether all channels of a head are rotated, as far as the tables tell.
    pub whole: bool,
    /// The nodes from `input` to the cached keys, in graph order.
    pub nodes: Vec<NodeId>,
    /// The channels that `nodes` work on, where the others come from another place and join them afterwards.
    pub part: Option<RotatedChannels>,
    /// The positions that the tables follow from.
    pub positions: Positions,
    /// The nodes that make the tables from the positions, in graph order.
    pub tables: Vec<NodeId>,
}

/// What is known of the rotation of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotated {
    /// They are not rotated.
    No,
    /// As said.
    By(Rotation),
    /// They are, in a way that is not followed: what is missing, in words.
    Unknown(String),
}

/// Channels of each head that are rotated by themselves, and how they join the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotatedChannels {
    /// The first of them.
    pub first: usize,
    /// How many they are.
    pub size: usize,
    /// The rotated channels [B, 1 or G, T, size].
    pub(in crate::recognize::rotation) rotated: String,
    /// The nodes that make the keys [B, G, T, d] of them, in graph order.
    pub(in crate::recognize::rotation) join: Vec<NodeId>,
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
        let (mut nodes, mut known) = (Vec::new(), (part.rotated.clone(), self.input.clone()));
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
