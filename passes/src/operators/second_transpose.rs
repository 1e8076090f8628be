//! A second transpose of rows that are also cached: exporters transpose new keys once to the cache output [B, G, T, d]
//! and once to the product's operand [B, G, d, T], because they merge the product's own transpose with the one before
//! the cache. The second is rewritten as a transpose of the first, so that the operand is recognised as a transpose of
//! the cache.

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, attribute, input_at, is_op, output_at};
use crate::onnx::NodeProto;
use crate::operators::Primitives;
use crate::recognize::pass_through;

/// A transpose of a value of which an earlier transpose reaches a graph output.
pub struct SecondTranspose<'g> {
    /// The output of the earlier transpose.
    first: &'g str,
    /// The permutation that turns `first` into the output of this transpose.
    order: Vec<i64>,
}

/// Recognises the node `id` as a second transpose: an earlier transpose of the same value is an output of the graph, or
/// reaches one through pass-through nodes.
pub fn candidate<'g>(
    graph: &Graph<'g>,
    facts: &Facts,
    id: NodeId,
    node: &NodeProto,
) -> Option<SecondTranspose<'g>> {
    let axes = axes(node)?;
    if graph.is_output(output_at(node, 0)?) {
        return None;
    }
    let uses = graph.uses(input_at(node, 0)?);
    uses.iter().filter(|u| u.node < id).find_map(|usage| {
        let earlier = graph.node(usage.node)?;
        let inner = self::axes(earlier)?;
        let first = output_at(earlier, 0)?;
        pass_through::present(graph, facts, first)?;
        // Output axis i is axis axes[i] of the common input, which the first transpose has moved to position
        // `inner^-1(axes[i])`.
        let place = |axis: &i64| Some(inner.iter().position(|a| a == axis)? as i64);
        let order = axes.iter().map(place).collect::<Option<Vec<i64>>>()?;
        Some(SecondTranspose { first, order })
    })
}

impl SecondTranspose<'_> {
    /// Replaces `node` by a transpose of the first transpose's output.
    pub fn lower(&self, s: &mut Primitives, node: &NodeProto) -> Option<()> {
        let output = output_at(node, 0)?;
        s.named("Transpose", "of_cache", &[self.first], &[output], |n| {
            n.with_ints("perm", &self.order)
        });
        Some(())
    }
}

/// The attribute `perm` of `node`; `None` if it is absent or `node` is no `Transpose`.
fn axes(node: &NodeProto) -> Option<&[i64]> {
    let perm = attribute(node, "perm").filter(|_| is_op(node, "Transpose"));
    Some(perm?.ints.as_slice())
}
