//! How many inputs the operators of ONNX's own domain take (ONNX operator specification, all versions together).

use std::ops::RangeInclusive;

use crate::graph::is_standard;
use crate::onnx::NodeProto;

/// The largest number of inputs of variadic operators.
const ANY: usize = usize::MAX;

/// The number of inputs that `node` has to have, and may have; `None` for operators that are not listed. Inputs up to the
/// first number cannot be left out by an empty name.
pub fn inputs(node: &NodeProto) -> Option<RangeInclusive<usize>> {
    if !is_standard(node) {
        return None;
    }
    Some(match node.op_type() {
        "Constant" | "RandomNormal" | "RandomUniform" => 0..=0,
        "Abs" | "Acos" | "ArgMax" | "ArgMin" | "Asin" | "Atan" | "BitwiseNot" | "Cast" | "Ceil"
        | "ConstantOfShape" | "Cos" | "Cosh" | "DepthToSpace" | "Elu" | "Erf" | "Exp"
        | "EyeLike" | "Flatten" | "Floor" | "Gelu" | "GlobalAveragePool" | "HardSigmoid"
        | "HardSwish" | "Identity" | "If" | "IsInf" | "IsNaN" | "LeakyRelu" | "Log"
        | "LogSoftmax" | "Mish" | "Neg" | "NonZero" | "Not" | "Reciprocal" | "Relu" | "Round"
        | "Selu" | "Shape" | "Sigmoid" | "Sign" | "Sin" | "Sinh" | "Size" | "Softmax"
        | "Softplus" | "Softsign" | "Sqrt" | "Tan" | "Tanh" | "Transpose" => 1..=1,
        "And" | "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "CastLike" | "CumSum"
        | "Div" | "Equal" | "Expand" | "Gather" | "GatherElements" | "GatherND" | "Greater"
        | "GreaterOrEqual" | "Less" | "LessOrEqual" | "MatMul" | "Mod" | "Mul" | "Or" | "PRelu"
        | "Pow" | "Sub" | "Add" | "Xor" => 2..=2,
        "OneHot" | "Range" | "ScatterElements" | "ScatterND" | "Where" => 3..=3,
        "Concat" | "Einsum" | "Max" | "Mean" | "Min" | "Sum" => 1..=ANY,
        "Clip" | "Dropout" => 1..=3,
        "Slice" => 1..=5,
        "Split" | "Squeeze" | "Unsqueeze" | "TopK" | "Trilu" | "Reshape" | "ReduceL1"
        | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax" | "ReduceMean"
        | "ReduceMin" | "ReduceProd" | "ReduceSum" | "ReduceSumSquare" => 1..=2,
        "Tile" => 2..=3,
        "Gemm" | "Conv" | "LayerNormalization" | "DequantizeLinear" | "QuantizeLinear"
        | "TensorScatter" => 2..=3,
        "MatMulInteger" => 2..=4,
        "RotaryEmbedding" => 3..=4,
        "RMSNormalization" => 2..=2,
        "DynamicQuantizeLinear" => 1..=1,
        _ => return None,
    })
}
