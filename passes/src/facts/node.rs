//! Inference of one node: the facts of its outputs from those of its inputs, by the specification of its operator.

use crate::facts::constant::{constant, constant_of_shape, range};
use crate::facts::content;
use crate::facts::contract::{gemm, matmul, reduced};
use crate::facts::contrib::contrib;
use crate::facts::einsum::einsum;
use crate::facts::elementwise::{choose, elementwise};
use crate::facts::windows::{convolved, pooled, pooled_whole, transposed};
use crate::facts::{Fact, Facts, arrange, branches, cut, picked};
use crate::graph::attribute;
use crate::onnx::stored::Model;
use crate::onnx::{NodeProto, tensor_proto::DataType};

const INT64: Option<i32> = Some(DataType::Int64 as i32);
const BOOL: Option<i32> = Some(DataType::Bool as i32);

/// The facts of the outputs of `node`, in order; missing entries are unknown. The result is empty for unknown
/// operators: their outputs have the types and shapes that the exporter declares.
pub fn infer(facts: &Facts, model: &Model, node: &NodeProto) -> Vec<Fact> {
    let inputs: Vec<&Fact> = node.input.iter().map(|name| facts.get(name)).collect();
    let known = match (facts.rules.of(node), node.domain()) {
        (Some(outputs), _) => outputs(facts, node, &inputs),
        (None, "" | "ai.onnx") => standard(facts, model, node, &inputs),
        (None, "com.microsoft") => contrib(facts, node, &inputs),
        (None, _) => Some(Vec::new()),
    };
    known.unwrap_or_else(|| vec![Fact::new(inputs.first().and_then(|f| f.elem_type), None)])
}

/// An operator of the default domain; `None` if only the type of its output is known, that of its first input.
fn standard(facts: &Facts, model: &Model, node: &NodeProto, inputs: &[&Fact]) -> Option<Vec<Fact>> {
    let op = node.op_type();
    match op {
        "Constant" => return Some(vec![constant(model, node)?]),
        "ConstantOfShape" => return Some(vec![constant_of_shape(facts, model, node)]),
        "If" => return Some(branches::agreed(facts, model, node)),
        _ => {}
    }
    let first: &Fact = inputs.first()?;
    let second = || inputs.get(1);
    let like_first = |elem_type| Fact::new(elem_type, first.shape.clone());
    let fact = match op {
        "Identity" | "Dropout" => first.clone(),
        "Cast" => {
            let to = attribute(node, "to").map(|a| a.i() as i32)?;
            let content = first.content.as_ref().and_then(|c| content::cast(to, c));
            like_first(Some(to)).holding(content)
        }
        "DequantizeLinear" | "CastLike" => like_first(second()?.elem_type),
        "QuantizeLinear" => {
            let zero_point = inputs.get(2).and_then(|f| f.elem_type);
            like_first(Some(zero_point.unwrap_or(DataType::Uint8 as i32)))
        }
        "Neg" | "Sqrt" | "Reciprocal" | "Exp" | "Abs" | "Not" => {
            let content = first.content.as_ref();
            let content = content.and_then(|c| content::unary(op, first.elem_type, c));
            like_first(first.elem_type).holding(content)
        }
        "Cos"
        | "Sin"
        | "Tanh"
        | "Sigmoid"
        | "Softmax"
        | "Erf"
        | "Log"
        | "Clip"
        | "Trilu"
        | "CumSum"
        | "Relu"
        | "Gelu"
        | "Softplus"
        | "Round"
        | "Sign"
        | "Elu"
        | "Selu"
        | "LeakyRelu"
        | "HardSwish"
        | "HardSigmoid"
        | "Mish"
        | "Swish"
        | "Floor"
        | "Ceil"
        | "ScatterND"
        | "ScatterElements"
        | "TensorScatter"
        | "LayerNormalization"
        | "RMSNormalization"
        | "SimplifiedLayerNormalization"
        | "RotaryEmbedding"
        | "LpNormalization"
        | "LogSoftmax"
        | "Hardmax"
        | "PRelu"
        | "Celu"
        | "Softsign"
        | "ThresholdedRelu"
        | "Shrink"
        | "Tan"
        | "Asin"
        | "Acos"
        | "Atan"
        | "Sinh"
        | "Cosh"
        | "Asinh"
        | "Acosh"
        | "Atanh"
        | "BitwiseNot"
        | "ReverseSequence"
        | "BatchNormalization"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "LRN" => like_first(first.elem_type),
        "IsNaN" | "IsInf" => like_first(BOOL),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" | "Sum" | "Mean" | "Mod"
        | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "BitShift" => {
            elementwise(facts, op, first.elem_type, inputs)
        }
        "And" | "Or" | "Xor" | "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
            elementwise(facts, op, BOOL, inputs)
        }
        "Where" => {
            let [condition, yes, no] = inputs else {
                return None;
            };
            let content = choose(condition, yes, no);
            elementwise(facts, op, yes.elem_type, inputs).holding(content)
        }
        "Shape" => arrange::shape(node, first),
        "Size" => arrange::size(first),
        "Reshape" => arrange::reshape(facts, node, first)?,
        "Transpose" => arrange::transpose(node, first)?,
        "Unsqueeze" => arrange::unsqueeze(facts, node, first)?,
        "Squeeze" => arrange::squeeze(facts, node, first)?,
        "Flatten" => arrange::flatten(node, first)?,
        "Expand" => arrange::expand(facts, node, first)?,
        "Tile" => arrange::tile(facts, node, first)?,
        "Concat" => cut::concat(facts, node, inputs)?,
        "Slice" => cut::slice(facts, node, first)?,
        "Gather" => cut::gather(node, inputs)?,
        "Split" => return cut::split(facts, node, first),
        "GatherElements" => Fact::new(first.elem_type, second()?.shape.clone()),
        "Range" => range(facts, inputs),
        "MatMul" => {
            let shape = matmul(facts, first.shape.as_ref()?, second()?.shape.as_ref()?)?;
            Fact::new(first.elem_type, Some(shape))
        }
        "Gemm" => gemm(node, first, second()?)?,
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1"
        | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceSumSquare" => {
            reduced(facts, node, first)?
        }
        "ArgMax" | "ArgMin" => picked::arg_max(node, first),
        "OneHot" => picked::one_hot(facts, node, inputs)?,
        "TopK" => return Some(picked::top_k(facts, node, first)),
        "Pad" => Fact::new(first.elem_type, picked::padded(facts, node, first)),
        "Compress" => Fact::new(first.elem_type, picked::compress(facts, node, first)),
        "Resize" | "Upsample" => Fact::new(first.elem_type, picked::resized(facts, first)),
        "Einsum" => Fact::new(first.elem_type, einsum(facts, node, inputs)),
        "Conv" => Fact::new(first.elem_type, convolved(facts, node, first, second()?)),
        "ConvInteger" => {
            let shape = convolved(facts, node, first, second()?);
            Fact::new(Some(DataType::Int32 as i32), shape)
        }
        "ConvTranspose" => Fact::new(first.elem_type, transposed(facts, node, first, second()?)),
        "AveragePool" | "LpPool" => Fact::new(first.elem_type, pooled(facts, node, first)),
        "MaxPool" => {
            let shape = pooled(facts, node, first);
            let indices = Fact::new(INT64, shape.clone());
            return Some(vec![Fact::new(first.elem_type, shape), indices]);
        }
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => {
            Fact::new(first.elem_type, pooled_whole(first))
        }
        "NonZero" => cut::non_zero(facts, first),
        "GatherND" => cut::gather_nd(node, inputs),
        "MatMulInteger" => {
            let shapes = first.shape.as_ref().zip(second()?.shape.as_ref());
            let shape = shapes.and_then(|(a, b)| matmul(facts, a, b));
            Fact::new(Some(DataType::Int32 as i32), shape)
        }
        "DynamicQuantizeLinear" => {
            let scalar = |kind| Fact::new(Some(kind as i32), Some(Vec::new()));
            let quantized = like_first(Some(DataType::Uint8 as i32));
            return Some(vec![
                quantized,
                scalar(DataType::Float),
                scalar(DataType::Uint8),
            ]);
        }
        _ => return Some(Vec::new()),
    };
    Some(vec![fact])
}
