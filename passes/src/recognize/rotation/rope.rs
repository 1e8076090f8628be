//! A recognised rotation, and the rows before it.

use crate::graph::{Graph, NodeId};
use crate::onnx::NodeProto;
use crate::recognize::rotation::positions::Positions;

/// The rotation of the keys or queries of one attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The unrotated rows [B, G, T, d], or [B, T, G*d] if heads are split afterwards. With `part`, only its channels.
    pub input: String,
    /// Whether `input` is [B, T, G*d].
    pub packed: bool,
    /// Whether neighbouring channels are paired; otherwise channels of the first half are paired with those of the
    /// second.
    pub interleaved: bool,
    /// Whether all channels of a head are rotated, judged by the width of the tables.
    pub whole: bool,
    /// The nodes from `input` to the rotated rows, in graph order.
    pub nodes: Vec<NodeId>,
    /// The channels that `nodes` rotate, if they are computed separately and concatenated with the others afterwards.
    pub part: Option<RotatedChannels>,
    /// The positions from which the tables are computed.
    pub positions: Positions,
    /// The nodes that compute the cos and sin tables from the positions, in graph order.
    pub tables: Vec<NodeId>,
}

/// The result of the recognition of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotated {
    /// The rows are not rotated.
    No,
    /// The rows are rotated as described.
    By(Rotation),
    /// The rows are rotated, but the rotation is not recognised: the reason as text.
    Unknown(String),
}

/// Channels of each head that are rotated separately, and the nodes that concatenate them with the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotatedChannels {
    /// Index of the first rotated channel.
    pub first: usize,
    /// Number of rotated channels.
    pub size: usize,
    /// The rotated channels [B, 1 or G, T, size].
    pub(in crate::recognize::rotation) rotated: String,
    /// The nodes that combine them with the other channels to keys [B, G, T, d], in graph order.
    pub(in crate::recognize::rotation) join: Vec<NodeId>,
}

impl Rotation {
    /// The unrotated rows, and the new nodes that compute them if the graph does not. `name` makes the names of new
    /// values.
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
