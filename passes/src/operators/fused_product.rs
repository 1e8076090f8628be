//! `com.microsoft.FusedMatMul`: `alpha * op(A) · op(B)`, into which ONNX Runtime fuses `MatMul`, `Transpose` and `Mul`.
//! If both operands are computed, it may be one of the two products of an attention, and is expanded so that they are
//! recognised.

use crate::facts::Facts;
use crate::facts::contrib::operand_order;
use crate::graph::{Graph, float_attribute, input_at, is_contrib, output_at};
use crate::onnx::NodeProto;
use crate::operators::Primitives;
use crate::recognize::candidate::is_product;

/// Whether `node` is a `FusedMatMul` of two computed operands. A product with a constant is a projection.
pub fn is_candidate(graph: &Graph, facts: &Facts, node: &NodeProto) -> bool {
    is_contrib(node, "FusedMatMul") && is_product(graph, facts, node)
}

/// Expands `node`; `None` if the type or the rank of an operand is unknown.
pub fn lower(s: &mut Primitives, node: &NodeProto) -> Option<()> {
    let elem_type = s.facts.elem_type(input_at(node, 0)?)?;
    let a = operand(s, node, 0, 'A')?;
    let b = operand(s, node, 1, 'B')?;
    let output = output_at(node, 0)?;
    match float_attribute(node, "alpha", 1.0) {
        1.0 => s.named("MatMul", "product", &[&a, &b], &[output], |n| n),
        alpha => {
            let product = s.op("MatMul", "product", &[&a, &b]);
            let factor = s.scalar(elem_type, f64::from(alpha));
            s.named("Mul", "scaled", &[&product, &factor], &[output], |n| n);
        }
    }
    Some(())
}

/// The operand at `position`, transposed as the attributes of `node` say.
fn operand(s: &mut Primitives, node: &NodeProto, position: usize, side: char) -> Option<String> {
    let value = input_at(node, position)?;
    let order = operand_order(node, side, s.facts.shape(value)?.len());
    if order.is_sorted() {
        return Some(value.to_owned());
    }
    let part = format!("transposed_{side}");
    Some(s.with("Transpose", &part, &[value], |n| {
        n.with_ints("perm", &order)
    }))
}
