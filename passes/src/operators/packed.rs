//! Static caches with the heads on one axis: `TensorScatter` (ONNX operator specification, opset 24) on
//! [B, S, G*d] with axis 1, as exporters write it for `Attention` with three axes. The new rows are passed through
//! [B, G, T, d], so that they are recognised like those of a cache with four axes. The buffer itself is left as it is.

use crate::facts::Facts;
use crate::graph::{Graph, input_at, output_at};
use crate::onnx::NodeProto;
use crate::operators::Primitives;
use crate::recognize::append::{CacheKind, axis, heads_of_packed, kind};
use crate::recognize::pass_through;

/// The sizes of the new rows of such a cache.
pub struct Packed {
    /// G.
    heads: i64,
    /// d.
    size: i64,
}

/// The sizes of the rows that `node` writes, if it writes rows of several heads on one axis into a buffer that is an
/// input of the graph.
pub fn candidate(graph: &Graph, facts: &Facts, node: &NodeProto) -> Option<Packed> {
    kind(node).filter(|&kind| kind == CacheKind::Static)?;
    pass_through::past(graph, facts, input_at(node, 0)?)?;
    let width = match facts.shape(input_at(node, 1)?)? {
        [_, _, width] => width.as_i64()?,
        _ => return None,
    };
    let along = matches!(axis(node, CacheKind::Static), 1 | -2);
    let heads = heads_of_packed(graph, facts, output_at(node, 0)?).filter(|_| along)?;
    (width % heads == 0).then_some(Packed {
        heads,
        size: width / heads,
    })
}

impl Packed {
    /// Replaces `node` by one whose new rows come from four axes.
    pub fn lower(&self, s: &mut Primitives, node: &NodeProto) -> Option<()> {
        let rows = s.heads("new", input_at(node, 1)?, self.heads, self.size);
        let shape = s.vector(&[0, 0, self.heads * self.size]);
        let rows = s.with("Transpose", "new/by_token", &[&rows], |n| {
            n.with_ints("perm", &[0, 2, 1, 3])
        });
        let rows = s.op("Reshape", "new/packed", &[&rows, &shape]);
        let mut write = node.clone();
        *write.input.get_mut(1)? = rows;
        s.keep(write);
        Some(())
    }
}
