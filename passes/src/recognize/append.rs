//! How the new rows of a step join the past rows of a cache.
//!
//! ```text
//! growing   present [B, G, P + T, d] = Concat(past [B, G, P, d], new [B, G, T, d])
//! static    present [B, G, S, d] = TensorScatter(past [B, G, S, d], new, write_indices [B])
//! ```
//!
//! A static cache is a buffer of a constant number of rows, its capacity S. `TensorScatter` (ONNX operator
//! specification, opset 24) writes row t of sequence b to row `write_indices[b]` + t, modulo S if its mode is
//! `circular`. Both operators move whole rows, so they commute with a linear map of each row: the rows can be mapped to
//! latents before they join the others. Rows of a buffer that no token has been written to hold anything; the model's
//! masks hide them, whether they hold heads or latents.
//!
//! A static cache may have the heads on one axis, [B, S, G*d]. Then its new rows are those of four axes that the
//! expansion of operators (`operators/packed.rs`) puts in front of it.

use tract_data::prelude::TDim;

use crate::facts::{Facts, is_named, shapes};
use crate::graph::{Graph, NodeId, attribute, input_at, int_attribute, is_op, output_at};
use crate::onnx::NodeProto;
use crate::recognize::pass_through;

/// How the new rows of a step join the past rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// `Concat` puts them behind the past rows.
    Growing,
    /// `TensorScatter` writes them into a buffer.
    Static,
}

/// The past input, the new rows and the node that joins them.
#[derive(Debug, Clone)]
pub struct Append<'a> {
    /// The operator that joins them.
    pub kind: CacheKind,
    /// The graph input.
    pub past: &'a str,
    /// The values between `past` and the node, from the input of the node back.
    pub received: Vec<&'a str>,
    /// The new rows [B, G, T, d].
    pub new: &'a str,
    /// The same rows [B, T, G*d], if the cache has the heads on one axis.
    pub packed: Option<&'a str>,
    /// The output of the node.
    pub joined: &'a str,
    /// The node.
    pub node: NodeId,
    /// Its axis, possibly negative.
    pub axis: i64,
}

/// The kind of the cache, if `node` may join new rows to a past: a `Concat` of two inputs, or a `TensorScatter`.
pub fn kind(node: &NodeProto) -> Option<CacheKind> {
    match node.input.len() {
        2 if is_op(node, "Concat") => Some(CacheKind::Growing),
        2..=3 if is_op(node, "TensorScatter") => Some(CacheKind::Static),
        _ => None,
    }
}

/// The axis along which `node` joins rows, possibly negative.
pub fn axis(node: &NodeProto, kind: CacheKind) -> i64 {
    int_attribute(
        node,
        "axis",
        match kind {
            CacheKind::Growing => 0,
            CacheKind::Static => -2,
        },
    )
}

/// `node` as the join of a graph input and new rows; `None` if it is none.
pub fn append<'a>(
    graph: &Graph<'a>,
    facts: &Facts,
    id: NodeId,
    node: &'a NodeProto,
) -> Option<Append<'a>> {
    let kind = kind(node)?;
    let (past, received) = pass_through::past(graph, facts, input_at(node, 0)?)?;
    let written = input_at(node, 1)?;
    let heads = match kind {
        CacheKind::Static => heads_behind(graph, facts, written),
        CacheKind::Growing => None,
    };
    let packed = |heads| {
        let split = two_back(graph, heads, ["Transpose", "Reshape"]);
        let same = |rows: &&str| facts.shape(rows) == facts.shape(written);
        split.filter(same).unwrap_or(written)
    };
    Some(Append {
        kind,
        past,
        received,
        new: heads.unwrap_or(written),
        packed: heads.map(packed),
        joined: output_at(node, 0)?,
        node: id,
        axis: axis(node, kind),
    })
}

/// The rows [B, G, T, d] of which `packed` [B, T, G*d] is made by a `Transpose` and a `Reshape`.
fn heads_behind<'a>(graph: &Graph<'a>, facts: &Facts, packed: &'a str) -> Option<&'a str> {
    let heads = two_back(graph, packed, ["Reshape", "Transpose"])?;
    let ([batch, groups, length, size], [b, t, width]) =
        (facts.shape(heads)?, facts.shape(packed)?)
    else {
        return None;
    };
    let merges = width.as_i64() == Some(groups.as_i64()? * size.as_i64()?);
    ((batch, length) == (b, t) && merges).then_some(heads)
}

/// The input of the two nodes of the operators `ops` that make `value`, the last node first; a `Transpose` among them
/// must exchange heads and positions.
fn two_back<'a>(graph: &Graph<'a>, value: &'a str, ops: [&str; 2]) -> Option<&'a str> {
    ops.into_iter().try_fold(value, |value, op| {
        let (_, node) = graph.producer(value)?;
        let perm = attribute(node, "perm").map(|a| a.ints.as_slice());
        let exchanges = op != "Transpose" || perm == Some([0, 2, 1, 3].as_slice());
        input_at(node, 0).filter(|_| is_op(node, op) && exchanges)
    })
}

/// The number of heads of the cache `present` [B, S, G*d], if a reader splits them: the operator `Attention`, or a
/// `Reshape` to [B, S, G, d].
pub fn heads_of_packed(graph: &Graph, facts: &Facts, present: &str) -> Option<i64> {
    let uses = graph.uses(present).iter();
    let mut heads = uses.filter_map(|usage| {
        let node = graph.node(usage.node)?;
        match usage.input? {
            1 | 2 if is_op(node, "Attention") => Some(int_attribute(node, "kv_num_heads", 0)),
            0 if is_op(node, "Reshape") => match facts.shape(output_at(node, 0)?)? {
                [_, _, heads, _] => heads.as_i64(),
                _ => None,
            },
            _ => None,
        }
    });
    heads.next().filter(|&heads| heads > 0)
}

impl Append<'_> {
    /// Whether it joins along the sequence axis: axis 2 of [B, G, length, d], or axis 1 of [B, length, G*d].
    pub fn is_along_the_sequence(&self, facts: &Facts) -> bool {
        let rank = facts.shape(self.past).map_or(0, <[_]>::len);
        let sequence = match self.packed {
            None => (4, 2),
            Some(_) => (3, 1),
        };
        rank == sequence.0 && shapes::axis(self.axis, rank) == Some(sequence.1)
    }

    /// Whether the new rows are proved to have the heads and sizes of the past rows, as `TensorScatter` requires, and
    /// `Concat` too, once there are past rows: before, ONNX Runtime compares nothing. A growing cache whose batch has a name
    /// or a number has rows of the same batch.
    pub fn fits(&self, facts: &Facts) -> bool {
        let rows = self.packed.unwrap_or(self.new);
        let growing = self.kind == CacheKind::Growing;
        // Heads or sizes of a cache that are no numbers are refused for that.
        let proved = |past: &TDim, new: &TDim| past.as_i64().is_none() || past == new;
        match (facts.shape(self.past), facts.shape(rows)) {
            (Some([batch, heads, _, size]), Some([copies, own, _, width])) => {
                let batches = !growing || batch == copies || !is_named(batch);
                proved(heads, own) && proved(size, width) && batches
            }
            (Some([_, _, size]), Some([_, _, width])) => proved(size, width),
            _ => growing,
        }
    }
}
