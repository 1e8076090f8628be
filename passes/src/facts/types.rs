//! The element types that operators accept (ONNX and ONNX Runtime operator specifications).
//!
//! Only constraints that all versions of an operator have in common are listed, so that no valid model is refused:
//! which inputs must have equal types, and which are indices, sizes, conditions or floats. An unknown type is accepted.

use crate::facts::content::Content;
use crate::facts::scoped::{ScopeFacts, Scoped};
use crate::facts::{Fact, agree};
use crate::graph::text::type_name;
use crate::graph::verify::OperandError;
use crate::graph::{is_op, is_standard, label};
use crate::onnx::tensor_proto::DataType;
use crate::onnx::{GraphProto, NodeProto};

/// The type constraint of one input of an operator.
#[derive(Debug, Clone, Copy)]
enum TypeConstraint {
    /// Any type.
    Any,
    /// The same type as all other `Shared` and `Float` inputs.
    Shared,
    /// As `Shared`, and a floating-point type.
    Float,
    /// One of these types.
    Of(&'static [DataType]),
}

use TypeConstraint::{Any, Float, Of, Shared};

const FLOATS: &[DataType] = &[
    DataType::Float,
    DataType::Double,
    DataType::Float16,
    DataType::Bfloat16,
];
const BOOL: TypeConstraint = Of(&[DataType::Bool]);
const INT32: TypeConstraint = Of(&[DataType::Int32]);
const INT64: TypeConstraint = Of(&[DataType::Int64]);
const INDEX: TypeConstraint = Of(&[DataType::Int32, DataType::Int64]);

/// The constraints of the inputs of an operator; the last entry applies to all further inputs.
fn inputs(node: &NodeProto) -> Option<&'static [TypeConstraint]> {
    if is_standard(node) {
        standard(node.op_type())
    } else if node.domain() == "com.microsoft" {
        contrib(node.op_type())
    } else {
        None
    }
}

fn standard(op: &str) -> Option<&'static [TypeConstraint]> {
    Some(match op {
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Min" | "Max" | "Sum" | "Mean" | "MatMul"
        | "Gemm" | "Concat" | "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual"
        | "Einsum" | "PRelu" | "Range" | "Conv" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => {
            &[Shared]
        }
        "And" | "Or" | "Xor" | "Not" => &[BOOL],
        "Where" => &[BOOL, Shared],
        "If" => &[BOOL],
        "Loop" => &[INT64, BOOL, Any],
        "Softmax" | "LogSoftmax" | "Tanh" | "Sigmoid" | "Erf" | "Exp" | "Log" | "Sqrt" | "Cos"
        | "Sin" | "Reciprocal" | "Softplus" | "Gelu" | "HardSwish" | "Elu" | "Selu" | "Mish" => {
            &[Float]
        }
        "LayerNormalization" => &[Float, Any],
        "RotaryEmbedding" => &[Float, Float, Float, INT64],
        "Clip" => &[Shared],
        "Reshape" | "Expand" | "Tile" | "Unsqueeze" | "Squeeze" | "Split" | "ReduceSum"
        | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL2" | "TopK"
        | "Trilu" | "GatherND" => &[Any, INT64],
        "ConstantOfShape" => &[INT64],
        "Gather" | "GatherElements" | "CumSum" => &[Any, INDEX],
        "Slice" => &[Any, INDEX],
        "ScatterElements" => &[Shared, INDEX, Shared],
        "ScatterND" => &[Shared, INT64, Shared],
        "TensorScatter" => &[Shared, Shared, INT64],
        "Pad" => &[Shared, INT64, Shared, INDEX],
        // Query, key, value (possibly another float type), mask, past key, past value.
        "Attention" => &[Float, Float, Of(FLOATS), Any, Float, Of(FLOATS), Any],
        _ => return None,
    })
}

fn contrib(op: &str) -> Option<&'static [TypeConstraint]> {
    Some(match op {
        "FusedMatMul" => &[Float],
        "RotaryEmbedding" => &[Float, INT64, Float, Float],
        "SkipSimplifiedLayerNormalization" | "SkipLayerNormalization" => &[Float, Float, Any],
        "MatMulNBits" => &[Float, Of(&[DataType::Uint8, DataType::Int32]), Any],
        // Query, key, value, past (may be quantized), seqlens_k, total_sequence_length, cos and sin tables, position
        // ids.
        "GroupQueryAttention" => &[
            Float, Float, Float, Any, Any, INT32, INT32, Float, Float, INT64, Any,
        ],
        // Query, key, value, bias, mask, bias of the scores, past.
        "MultiHeadAttention" => &[Float, Float, Float, Float, INT32, Float, Float, Float, Any],
        _ => return None,
    })
}

/// The smallest valid element of input `position` of `node`, with its meaning for messages, if that input is a list of
/// sizes.
fn least_size(node: &NodeProto, position: usize) -> Option<(i64, &'static str)> {
    match position {
        0 if is_op(node, "ConstantOfShape") => Some((0, "sizes, which are never negative")),
        1 if is_op(node, "Reshape") => Some((-1, "sizes, or -1 for what is left")),
        _ => None,
    }
}

/// Checks the types of the inputs of `node`, whose facts are `facts`, against its operator.
pub fn check(node: &NodeProto, facts: &[&Fact]) -> Result<(), OperandError> {
    let Some(operands) = inputs(node) else {
        return Ok(());
    };
    let mut shared: Option<(i32, &str)> = None;
    for (position, (input, fact)) in node.input.iter().zip(facts).enumerate() {
        let (Some(elem_type), false) = (fact.elem_type, input.is_empty()) else {
            continue;
        };
        let error = |expected: String| OperandError {
            node: label(node).to_owned(),
            operator: node.op_type().to_owned(),
            input: input.clone(),
            found: type_name(elem_type),
            expected,
        };
        let operand = operands.get(position).or(operands.last());
        let one_of = |types: &[DataType]| {
            if types.iter().any(|&t| t as i32 == elem_type) {
                return Ok(());
            }
            let names: Vec<String> = types.iter().map(|&t| type_name(t as i32)).collect();
            Err(error(names.join(" or ")))
        };
        if let (Some((least, expected)), Some(Content::Ints(sizes))) =
            (least_size(node, position), &fact.content)
            && sizes.iter().any(|n| n.as_i64().is_some_and(|n| n < least))
        {
            return Err(OperandError {
                found: agree::text(sizes),
                ..error(expected.to_owned())
            });
        }
        match operand {
            Some(Of(types)) => one_of(types)?,
            Some(Float) => one_of(FLOATS)?,
            _ => {}
        }
        if let Some(Shared | Float) = operand {
            match shared {
                Some((other, name)) if other != elem_type => {
                    return Err(error(format!("{} as '{name}'", type_name(other))));
                }
                Some(_) => {}
                None => shared = Some((elem_type, input)),
            }
        }
    }
    Ok(())
}

/// Checks types and shapes of the inputs of every node of `main` and its subgraphs: invariant 10 of
/// [`crate::graph::verify`]. `facts` are those of `main`.
pub fn verify(main: &GraphProto, facts: &ScopeFacts) -> Result<(), OperandError> {
    facts.visit(main, &mut verify_graph)
}

/// Checks types and shapes of the inputs of every node of one graph.
pub fn verify_graph(scoped: &Scoped) -> Result<(), OperandError> {
    for (_, node) in scoped.graph.nodes() {
        let inputs: Vec<&Fact> = node.input.iter().map(|v| scoped.facts.get(v)).collect();
        check(node, &inputs)?;
        agree::check(scoped.facts, node)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::graph::build::node;

    fn of(elem_type: DataType) -> Fact {
        Fact::new(Some(elem_type as i32), None)
    }

    #[test]
    fn a_product_of_two_types_is_refused_with_both() {
        let product = node("MatMul", "scores", &["q", "k"], &["s"]);
        let (q, k) = (of(DataType::Float), of(DataType::Float16));
        let error = check(&product, &[&q, &k]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "node 'scores' (MatMul): its input 'k' is float16, expected float as 'q'"
        );
        assert_eq!(check(&product, &[&q, &Fact::default()]), Ok(()));
    }

    #[test]
    fn an_index_is_an_integer_and_a_condition_a_boolean() {
        let gather = node("Gather", "g", &["table", "ids"], &["rows"]);
        let (float, int32) = (of(DataType::Float), of(DataType::Int32));
        assert_eq!(check(&gather, &[&float, &int32]), Ok(()));
        let error = check(&gather, &[&float, &float]).unwrap_err();
        assert_eq!(
            (error.input.as_str(), error.expected.as_str()),
            ("ids", "int32 or int64")
        );
        let choice = node("Where", "w", &["c", "a", "b"], &["y"]);
        assert!(check(&choice, &[&float, &float, &float]).is_err());
        assert_eq!(
            check(&choice, &[&of(DataType::Bool), &float, &float]),
            Ok(())
        );
    }

    #[test]
    fn no_size_of_a_reshape_is_below_minus_one() {
        let reshape = node("Reshape", "r", &["x", "shape"], &["y"]);
        let to = |sizes: &[i64]| Fact {
            content: Some(Content::Ints(sizes.iter().map(|&n| n.into()).collect())),
            ..of(DataType::Int64)
        };
        let x = of(DataType::Float);
        assert_eq!(check(&reshape, &[&x, &to(&[0, -1, 4])]), Ok(()));
        let error = check(&reshape, &[&x, &to(&[i64::MIN, 1])]).unwrap_err();
        assert_eq!(error.expected, "sizes, or -1 for what is left");
    }

    #[test]
    fn the_same_name_in_another_domain_is_another_operator() {
        let mut custom = node("MatMul", "m", &["a", "b"], &["y"]);
        custom.domain = Some("custom".to_owned());
        let facts = (of(DataType::Float), of(DataType::Int64));
        assert_eq!(check(&custom, &[&facts.0, &facts.1]), Ok(()));
    }
}
