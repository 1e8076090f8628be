//! One node: from the facts of its inputs to the facts of its outputs.

use tract_data::prelude::TDim;

use crate::facts::content::{self, Content};
use crate::facts::{Fact, Facts, Shape, arrange, attention, dim, shapes};
use crate::graph::{attribute, int_attribute};
use crate::onnx::stored::Model;
use crate::onnx::{NodeProto, tensor_proto::DataType};

pub use crate::facts::shapes::axis;

const INT64: Option<i32> = Some(DataType::Int64 as i32);
const BOOL: Option<i32> = Some(DataType::Bool as i32);

/// The facts of the outputs of `node`, in order; shorter where nothing is known of the rest.
pub fn infer(facts: &mut Facts, model: &Model, node: &NodeProto) -> Vec<Fact> {
    let inputs: Vec<Fact> = node.input.iter().map(|name| facts.fact(name)).collect();
    let first = inputs.first().cloned().unwrap_or_default();
    let known = match (node.domain(), node.op_type()) {
        ("" | "ai.onnx", op) => standard(facts, model, node, op, &inputs),
        ("com.microsoft", op) => attention::contrib(facts, node, op, &inputs),
        _ => None,
    };
    known.unwrap_or_else(|| {
        // Of an operator that is not followed, only the element type is assumed, which nothing is proved from.
        vec![Fact {
            elem_type: first.elem_type,
            ..Fact::default()
        }]
    })
}

fn standard(
    facts: &mut Facts,
    model: &Model,
    node: &NodeProto,
    op: &str,
    inputs: &[Fact],
) -> Option<Vec<Fact>> {
    let first = inputs.first().cloned().unwrap_or_default();
    let one = |elem_type, shape, content| {
        Some(vec![Fact {
            elem_type,
            shape,
            content,
        }])
    };
    match op {
        "Constant" => Some(vec![constant(model, node)?]),
        "Identity" | "Dropout" => Some(vec![first]),
        "Cast" => {
            let to = attribute(node, "to").map(|a| a.i() as i32)?;
            let content = first.content.as_ref().and_then(|c| content::cast(to, c));
            one(Some(to), first.shape, content)
        }
        "DequantizeLinear" => one(inputs.get(1)?.elem_type, first.shape, None),
        "QuantizeLinear" => {
            let zero_point = inputs.get(2).and_then(|f| f.elem_type);
            let kind = zero_point.unwrap_or(DataType::Uint8 as i32);
            one(Some(kind), first.shape, None)
        }
        "CastLike" => one(inputs.get(1)?.elem_type, first.shape, None),
        "Neg" | "Sqrt" | "Reciprocal" | "Exp" | "Abs" | "Not" => {
            let content = first
                .content
                .as_ref()
                .and_then(|c| content::unary(op, first.elem_type, c));
            one(first.elem_type, first.shape, content)
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
        | "LayerNormalization"
        | "RMSNormalization"
        | "SimplifiedLayerNormalization"
        | "RotaryEmbedding"
        | "LpNormalization" => one(first.elem_type, first.shape, None),
        "IsNaN" | "IsInf" => one(BOOL, first.shape, None),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" | "Mod" | "BitwiseAnd"
        | "BitwiseOr" => Some(vec![elementwise(facts, op, first.elem_type, inputs)]),
        "And" | "Or" | "Xor" | "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
            Some(vec![elementwise(facts, op, BOOL, inputs)])
        }
        "Where" => {
            let [condition, yes, no] = inputs else {
                return None;
            };
            let mut fact = elementwise(facts, op, yes.elem_type, inputs);
            fact.content = choose(condition, yes, no);
            Some(vec![fact])
        }
        "Shape" => {
            let sizes = first.shape?;
            let range = shape_range(node, sizes.len());
            let sizes = sizes.get(range)?.to_vec();
            one(
                INT64,
                Some(vec![TDim::from(sizes.len())]),
                Some(Content::Ints(sizes)),
            )
        }
        "Size" => {
            let content = dim::product(&first.shape?).map(|n| Content::Ints(vec![n]));
            one(INT64, Some(Vec::new()), content)
        }
        "Reshape" => {
            let target = facts.ints(node.input.get(1)?)?.to_vec();
            let allow_zero = int_attribute(node, "allowzero", 0) != 0;
            let sizes = shapes::reshape(first.shape.as_deref(), &target, allow_zero)?;
            let shape = shapes::filled(sizes, || facts.fresh());
            one(first.elem_type, Some(shape), first.content)
        }
        "Transpose" => {
            let perm = attribute(node, "perm")
                .map(|a| a.ints.clone())
                .unwrap_or_default();
            let shape = shapes::transpose(&first.shape?, &perm)?;
            let content = first.content.filter(|_| shape.len() <= 1);
            one(first.elem_type, Some(shape), content)
        }
        "Unsqueeze" => {
            let sizes = first.shape?;
            let new = shapes::unsqueezed(&axes(facts, node)?, sizes.len())?;
            let mut old = sizes.into_iter();
            let shape = new
                .iter()
                .map(|&new| if new { Some(TDim::Val(1)) } else { old.next() })
                .collect::<Option<Shape>>()?;
            one(first.elem_type, Some(shape), first.content)
        }
        "Squeeze" => {
            let sizes = first.shape?;
            let axes = if node.input.get(1).is_some_and(|s| !s.is_empty())
                || attribute(node, "axes").is_some()
            {
                Some(axes(facts, node)?)
            } else {
                None
            };
            let gone = shapes::squeezed(axes.as_deref(), &sizes)?;
            let shape = sizes
                .into_iter()
                .zip(gone)
                .filter(|(_, gone)| !gone)
                .map(|(d, _)| d)
                .collect();
            one(first.elem_type, Some(shape), first.content)
        }
        "Flatten" => {
            let sizes = first.shape?;
            let at = int_attribute(node, "axis", 1);
            let at = if at == sizes.len() as i64 {
                sizes.len()
            } else {
                axis(at, sizes.len())?
            };
            let (outer, inner) = (sizes.get(..at)?, sizes.get(at..)?);
            one(
                first.elem_type,
                Some(vec![dim::product(outer)?, dim::product(inner)?]),
                None,
            )
        }
        "Expand" => {
            let target = facts.ints(node.input.get(1)?)?.to_vec();
            let sizes = shapes::broadcast(&[&first.shape?, &target]);
            let shape = shapes::filled(sizes, || facts.fresh());
            let content = first
                .content
                .filter(|c| c.len() == 1)
                .and_then(|c| repeated(&c, &shape));
            one(first.elem_type, Some(shape), content)
        }
        "ConstantOfShape" => {
            let shape = facts.ints(node.input.first()?)?.to_vec();
            let value = match attribute(node, "value").and_then(|a| a.t.as_ref()) {
                Some(tensor) => content::of_tensor(model, tensor),
                None => Fact {
                    elem_type: Some(DataType::Float as i32),
                    shape: None,
                    content: Some(Content::Floats(vec![0.0])),
                },
            };
            let content = value.content.and_then(|c| repeated(&c, &shape));
            one(value.elem_type, Some(shape), content)
        }
        "Concat" => Some(vec![arrange::concat(facts, node, inputs)?]),
        "Slice" => Some(vec![arrange::slice(facts, node, &first)?]),
        "Gather" => Some(vec![arrange::gather(node, inputs)?]),
        "GatherElements" => one(first.elem_type, inputs.get(1)?.shape.clone(), None),
        "Split" => arrange::split(facts, node, &first),
        "Tile" => {
            let repeats = facts.ints(node.input.get(1)?)?.to_vec();
            let sizes = first.shape?;
            if sizes.len() != repeats.len() {
                return None;
            }
            let shape = sizes
                .iter()
                .zip(&repeats)
                .map(|(a, b)| dim::mul(a, b))
                .collect();
            let shape = shapes::filled(shape, || facts.fresh());
            one(first.elem_type, Some(shape), None)
        }
        "Range" => {
            let ends = inputs.iter().map(|f| match f.content.as_ref()? {
                Content::Ints(v) => v.first().cloned(),
                Content::Floats(_) => None,
            });
            let ends: Option<Vec<TDim>> = ends.collect();
            let length = ends.and_then(|e| match e.as_slice() {
                [start, end, step] if *step == TDim::Val(1) => dim::sub(end, start),
                _ => None,
            });
            let shape = vec![length.unwrap_or_else(|| facts.fresh())];
            one(first.elem_type, Some(shape), None)
        }
        "MatMul" => {
            let shape = matmul(facts, &first.shape?, inputs.get(1)?.shape.as_ref()?)?;
            one(first.elem_type, Some(shape), None)
        }
        "Gemm" => {
            let (a, b) = (first.shape?, inputs.get(1)?.shape.clone()?);
            let rows = a.get(usize::from(int_attribute(node, "transA", 0) != 0))?;
            let columns = b.get(usize::from(int_attribute(node, "transB", 0) == 0))?;
            one(
                first.elem_type,
                Some(vec![rows.clone(), columns.clone()]),
                None,
            )
        }
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL2" => {
            let shape = reduced(facts, node, first.shape.as_deref()?)?;
            let total = |c: Content| match c {
                Content::Ints(v) if op == "ReduceProd" => {
                    dim::product(&v).map(|n| Content::Ints(vec![n]))
                }
                _ => None,
            };
            let content = first
                .content
                .filter(|_| dim::product(&shape) == Some(TDim::Val(1)))
                .and_then(total);
            one(first.elem_type, Some(shape), content)
        }
        "Attention" => attention::attention(node, inputs),
        _ => None,
    }
}

/// Which sizes `Shape` of a tensor of rank `rank` gives: its `start` and `end` (since opset 15), clamped.
pub fn shape_range(node: &NodeProto, rank: usize) -> std::ops::Range<usize> {
    let at = |name: &str, default: i64| {
        let rank = rank as i64;
        let value = int_attribute(node, name, default);
        (if value < 0 {
            value.saturating_add(rank)
        } else {
            value
        })
        .clamp(0, rank) as usize
    };
    let (start, end) = (at("start", 0), at("end", rank as i64));
    start..end.max(start)
}

fn constant(model: &Model, node: &NodeProto) -> Option<Fact> {
    let value = node.attribute.first()?;
    let ints = |values: &[i64], shape| Fact {
        elem_type: INT64,
        shape: Some(shape),
        content: Some(Content::Ints(
            values.iter().map(|&n| TDim::Val(n)).collect(),
        )),
    };
    let floats = |values: &[f32], shape| Fact {
        elem_type: Some(DataType::Float as i32),
        shape: Some(shape),
        content: Some(Content::Floats(values.iter().map(|&v| v.into()).collect())),
    };
    match value.name() {
        "value" => value.t.as_ref().map(|t| content::of_tensor(model, t)),
        "value_int" => Some(ints(&[value.i()], Vec::new())),
        "value_ints" => Some(ints(&value.ints, vec![TDim::from(value.ints.len())])),
        "value_float" => Some(floats(&[value.f()], Vec::new())),
        "value_floats" => Some(floats(&value.floats, vec![TDim::from(value.floats.len())])),
        _ => None,
    }
}

fn elementwise(facts: &mut Facts, op: &str, elem_type: Option<i32>, inputs: &[Fact]) -> Fact {
    let known: Option<Vec<&[TDim]>> = inputs.iter().map(|f| f.shape.as_deref()).collect();
    let shape = known.map(|shapes| shapes::filled(shapes::broadcast(&shapes), || facts.fresh()));
    let flat = shape.as_ref().is_some_and(|s| s.len() <= 1);
    let content = match inputs {
        [a, b] if flat => a
            .content
            .as_ref()
            .zip(b.content.as_ref())
            .and_then(|(a, b)| content::binary(op, elem_type, a, b)),
        _ => None,
    };
    Fact {
        elem_type,
        shape,
        content,
    }
}

fn choose(condition: &Fact, yes: &Fact, no: &Fact) -> Option<Content> {
    let (Content::Ints(condition), Content::Ints(yes), Content::Ints(no)) = (
        condition.content.as_ref()?,
        yes.content.as_ref()?,
        no.content.as_ref()?,
    ) else {
        return None;
    };
    let count = condition.len().max(yes.len()).max(no.len());
    let at = |v: &[TDim], i: usize| match v.len() {
        1 => v.first().cloned(),
        n if n == count => v.get(i).cloned(),
        _ => None,
    };
    (0..count)
        .map(|i| match at(condition, i)?.as_i64()? {
            0 => at(no, i),
            _ => at(yes, i),
        })
        .collect::<Option<_>>()
        .map(Content::Ints)
}

fn repeated(value: &Content, shape: &[TDim]) -> Option<Content> {
    let count = usize::try_from(dim::product(shape)?.as_i64()?).ok()?;
    (count <= content::LONGEST && value.len() == 1).then(|| value.pick(&vec![0; count]))?
}

/// The `axes` of `Unsqueeze`, `Squeeze` and the reductions: an input since opset 13 (18 for some), an attribute before.
pub fn axes(facts: &Facts, node: &NodeProto) -> Option<Vec<i64>> {
    match node.input.get(1) {
        Some(input) if !input.is_empty() => facts.integers(input),
        _ => attribute(node, "axes").map(|a| a.ints.clone()),
    }
}

/// The shape of a product of shapes `a` and `b`, batch axes broadcast.
pub fn matmul(facts: &mut Facts, a: &[TDim], b: &[TDim]) -> Option<Shape> {
    let ([batch_a @ .., rows, _], [batch_b @ .., _, columns]) = (a, b) else {
        return None;
    };
    let mut shape = shapes::filled(shapes::broadcast(&[batch_a, batch_b]), || facts.fresh());
    shape.push(rows.clone());
    shape.push(columns.clone());
    Some(shape)
}

fn reduced(facts: &Facts, node: &NodeProto, shape: &[TDim]) -> Option<Shape> {
    let keep = int_attribute(node, "keepdims", 1) != 0;
    let named =
        node.input.get(1).is_some_and(|n| !n.is_empty()) || attribute(node, "axes").is_some();
    let mut gone = vec![!named; shape.len()];
    if named {
        for a in axes(facts, node)? {
            *gone.get_mut(axis(a, shape.len())?)? = true;
        }
    }
    Some(
        shape
            .iter()
            .zip(gone)
            .filter_map(|(size, gone)| match (gone, keep) {
                (false, _) => Some(size.clone()),
                (true, true) => Some(TDim::Val(1)),
                (true, false) => None,
            })
            .collect(),
    )
}
