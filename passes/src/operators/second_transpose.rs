//! Rows that are transposed twice: once to a cache output [B, G, T, d], and once to the operand [B, G, d, T] of a product.
//! Exporters merge the product's transpose with the one in front of the cache. The second one is lowered as a transpose
//! of the first, so that the operand is seen to be the cache.

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, attribute, input_at, is_op, output_at};
use crate::onnx::NodeProto;
use crate::operators::Primitives;
use crate::recognize::pass_through;

/// A transpose that is also one of a value that goes out.
pub struct SecondTranspose<'g> {
    /// The value of the first transpose.
    first: &'g str,
    /// The order of its axes.
    order: Vec<i64>,
}

/// What the node `id` is, if an earlier transpose of its input is an output of the graph or passed on to one.
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
        // Axis i of the second is axis axes[i] of the rows, which is the axis of the first that holds it.
        let place = |axis: &i64| Some(inner.iter().position(|a| a == axis)? as i64);
        let order = axes.iter().map(place).collect::<Option<Vec<i64>>>()?;
        Some(SecondTranspose { first, order })
    })
}

impl SecondTranspose<'_> {
    /// Lowers `node`.
    pub fn lower(&self, s: &mut Primitives, node: &NodeProto) -> Option<()> {
        let output = output_at(node, 0)?;
        s.named("Transpose", "of_cache", &[self.first], &[output], |n| {
            n.with_ints("perm", &self.order)
        });
        Some(())
    }
}

/// The attribute `perm` of a `Transpose`; none of any other node, or of one without it.
fn axes(node: &NodeProto) -> Option<&[i64]> {
    let perm = attribute(node, "perm").filter(|_| is_op(node, "Transpose"));
    Some(perm?.ints.as_slice())
}
