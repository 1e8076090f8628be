//! The gradient of every operator against central differences.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};
use gqa2mla_passes::graph::build::node;
use gqa2mla_passes::onnx::{AttributeProto, NodeProto};
use gqa2mla_train::operators::{Call, Gradient, all, find};

/// Half the distance of the two points of a difference. In fp32, whose rounding is 1e-7 of sums near 1, it leaves an error
/// of 1e-5 from rounding and 1e-4 from the third derivative.
const STEP: f32 = 1e-2;
/// Largest difference that is rounding and curvature, relative to the largest gradient of the tensor.
const TOLERANCE: f32 = 5e-3;

/// One operator with inputs to differentiate at.
struct Case {
    node: NodeProto,
    inputs: Vec<Option<Tensor>>,
    /// Inputs whose gradient is checked.
    checked: Vec<usize>,
}

/// Numbers between -1 and 1 without a pattern that an error could hide in.
fn floats(dims: &[usize], seed: u32) -> Tensor {
    let count: usize = dims.iter().product();
    let wave = |i: usize| ((i as f32 + 1.0) * 12.9898 + seed as f32 * 78.233).sin() * 43_758.547;
    let values: Vec<f32> = (0..count).map(|i| wave(i).fract()).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

/// The same between 0.5 and 1.5.
fn positive(dims: &[usize], seed: u32) -> Tensor {
    ((floats(dims, seed).abs().unwrap()) + 0.5).unwrap()
}

fn ints(values: &[i64]) -> Tensor {
    Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
}

fn case(op: &str, inputs: &[&Tensor], checked: &[usize]) -> Case {
    Case {
        node: node(op, op, &[], &["y"]),
        inputs: inputs.iter().map(|&t| Some(t.clone())).collect(),
        checked: checked.to_vec(),
    }
}

impl Case {
    fn with(mut self, change: impl FnOnce(NodeProto) -> NodeProto) -> Self {
        self.node = change(self.node);
        self
    }

    fn contrib(mut self) -> Self {
        self.node.domain = Some("com.microsoft".to_owned());
        self
    }

    fn outputs(mut self, names: &[&str]) -> Self {
        self.node.output = names.iter().map(|&n| n.to_owned()).collect();
        self
    }
}

fn text(name: &str, value: &'static str) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        s: Some(value.as_bytes().into()),
        ..AttributeProto::default()
    }
}

fn cases() -> Vec<Case> {
    let (x, y) = (floats(&[2, 3, 4], 1), floats(&[3, 1], 2));
    let (up, over) = (positive(&[2, 3, 4], 3), positive(&[3, 1], 4));
    let scalar = |v: f32| Tensor::new(v, &Device::Cpu).unwrap();
    // Not within a difference of the ends.
    let limited = Tensor::new(&[-1.0f32, -0.3, 0.2, 0.9], &Device::Cpu).unwrap();
    let mask = floats(&[3, 4], 5).gt(0f32).unwrap();
    let (gain, bias) = (positive(&[4], 6), floats(&[4], 7));
    let heads = floats(&[2, 3, 5, 8], 8);
    let angles = floats(&[2, 5, 3], 9);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let table = |t: &Tensor| t.narrow(0, 0, 1).unwrap().squeeze(0).unwrap();
    let places = Tensor::new(&[[0i64, 1, 2, 3, 4], [4, 3, 2, 1, 0]], &Device::Cpu).unwrap();
    let one = Tensor::new(&[[1i64]], &Device::Cpu).unwrap();
    let packed = floats(&[2, 5, 24], 10);
    let apart = Tensor::from_vec(vec![-0.42f32, 0.22, 0.05], (3, 1), &Device::Cpu).unwrap();
    // One block is named twice, and one from behind.
    let tuples = Tensor::new(&[[0i64, 1], [1, -1], [0, 1]], &Device::Cpu).unwrap();
    let along = Tensor::from_vec(
        vec![0i64, 3, -2, 1, 2, 0, 3, 1, 0, 2, 1, -1],
        (2, 3, 2),
        &Device::Cpu,
    );
    let along = along.unwrap();
    // Far enough apart that a difference does not change their order.
    let ordered: Vec<f32> = (0..24).map(|i| (i * 7 % 24) as f32 / 12.0 - 1.0).collect();
    let ordered = Tensor::from_vec(ordered, (2, 3, 4), &Device::Cpu).unwrap();
    vec![
        case("Add", &[&x, &y], &[0, 1]),
        case("Sub", &[&y, &x], &[0, 1]),
        case("Mul", &[&x, &y], &[0, 1]),
        case("Div", &[&x, &over], &[0, 1]),
        case("Pow", &[&x, &scalar(2.0)], &[0]),
        case("Pow", &[&up, &scalar(-0.5)], &[0]),
        case("Pow", &[&up, &scalar(1.7)], &[0]),
        case("Where", &[&mask, &x, &y], &[1, 2]),
        case("Clip", &[&limited, &scalar(-0.5), &scalar(0.5)], &[0]),
        case("Neg", &[&x], &[0]),
        case("DequantizeLinear", &[&x, &positive(&[3], 19)], &[0]),
        case("Sqrt", &[&up], &[0]),
        case("Reciprocal", &[&up], &[0]),
        case("Exp", &[&x], &[0]),
        case("Tanh", &[&x], &[0]),
        case("Sigmoid", &[&x], &[0]),
        case("Log", &[&up], &[0]),
        case("Sin", &[&x], &[0]),
        case("Cos", &[&x], &[0]),
        case("Abs", &[&up], &[0]),
        case("Relu", &[&up.neg().unwrap()], &[0]),
        case("Relu", &[&up], &[0]),
        case("Erf", &[&x], &[0]),
        case("Softplus", &[&x], &[0]),
        case("Swish", &[&x], &[0]).with(|n| n.with_float("alpha", 1.3)),
        case("Gelu", &[&x], &[0]),
        case("Gelu", &[&x], &[0]).with(|mut n| {
            n.attribute.push(text("approximate", "tanh"));
            n
        }),
        case("Gelu", &[&x], &[0]).contrib(),
        case("FastGelu", &[&x], &[0]).contrib(),
        case("FastGelu", &[&x, &bias], &[0]).contrib(),
        case("QuickGelu", &[&x], &[0]).contrib(),
        case("Reshape", &[&x, &ints(&[0, -1, 2])], &[0]),
        case("Transpose", &[&x], &[0]).with(|n| n.with_ints("perm", &[1, 2, 0])),
        case("Unsqueeze", &[&x, &ints(&[0, -1])], &[0]),
        case("Squeeze", &[&y, &ints(&[-1])], &[0]),
        case("Flatten", &[&x], &[0]).with(|n| n.with_int("axis", 2)),
        case("Expand", &[&y, &ints(&[2, 1, 4])], &[0]),
        case("Identity", &[&x], &[0]),
        case("Concat", &[&x, &floats(&[2, 0, 4], 1), &up], &[0, 2]).with(|n| n.with_int("axis", 1)),
        case("Split", &[&x, &ints(&[1, 3])], &[0])
            .with(|n| n.with_int("axis", -1))
            .outputs(&["a", "b"]),
        case(
            "Slice",
            &[&x, &ints(&[1, -2]), &ints(&[i64::MAX, -1]), &ints(&[2, 1])],
            &[0],
        ),
        case(
            "Slice",
            &[
                &x,
                &ints(&[-1]),
                &ints(&[i64::MIN]),
                &ints(&[2]),
                &ints(&[-2]),
            ],
            &[0],
        ),
        case("Gather", &[&x, &ints(&[2, 0, -1])], &[0]).with(|n| n.with_int("axis", 1)),
        case("Max", &[&x, &apart, &scalar(0.1)], &[0, 1]),
        case("Min", &[&x, &apart], &[0, 1]),
        case("ReduceMax", &[&ordered, &ints(&[1])], &[0]),
        case("ReduceMax", &[&ordered], &[0]).with(|n| n.with_int("keepdims", 0)),
        case("GatherND", &[&x, &tuples], &[0]),
        case("GatherElements", &[&x, &along], &[0]).with(|n| n.with_int("axis", -1)),
        case("ScatterND", &[&x, &tuples, &floats(&[3, 4], 20)], &[0, 2]),
        case("ScatterND", &[&x, &tuples, &floats(&[3, 4], 20)], &[0, 2])
            .with(|n| n.with_text("reduction", "add")),
        case(
            "ScatterElements",
            &[&x, &along, &floats(&[2, 3, 2], 21)],
            &[0, 2],
        )
        .with(|n| n.with_int("axis", -1)),
        case("TopK", &[&ordered, &ints(&[2])], &[0]).with(|n| n.with_int("axis", 1)),
        case("TopK", &[&ordered, &ints(&[3])], &[0]).with(|n| n.with_int("largest", 0)),
        case("Tile", &[&x, &ints(&[1, 2, 3])], &[0]),
        case("Trilu", &[&x], &[0]),
        case("Trilu", &[&x, &ints(&[-1])], &[0]).with(|n| n.with_int("upper", 0)),
        case("Cast", &[&x], &[0]).with(|n| n.with_int("to", 10)),
        case("CastLike", &[&x, &y], &[0]),
        case("ReduceMean", &[&x, &ints(&[-1])], &[0]),
        case("ReduceSum", &[&x, &ints(&[0, 2])], &[0]).with(|n| n.with_int("keepdims", 0)),
        case("Softmax", &[&x], &[0]),
        case("Softmax", &[&x], &[0]).with(|n| n.with_int("axis", 1)),
        case("MatMul", &[&x, &floats(&[4, 5], 11)], &[0, 1]),
        case(
            "MatMul",
            &[&floats(&[2, 1, 6, 3], 12), &floats(&[2, 3, 3, 5], 13)],
            &[0, 1],
        ),
        case(
            "MatMul",
            &[&floats(&[2, 3, 6, 3], 12), &floats(&[2, 1, 3, 5], 13)],
            &[0, 1],
        ),
        case(
            "MatMul",
            &[&floats(&[2, 3, 4, 3], 12), &floats(&[3, 3, 5], 13)],
            &[0, 1],
        ),
        case(
            "MatMul",
            &[&x, &floats(&[2, 5, 4], 14).transpose(1, 2).unwrap()],
            &[0, 1],
        ),
        case(
            "Gemm",
            &[
                &floats(&[4, 3], 15),
                &floats(&[5, 4], 16),
                &floats(&[5], 17),
            ],
            &[0, 1, 2],
        )
        .with(|n| {
            n.with_int("transA", 1)
                .with_int("transB", 1)
                .with_float("alpha", 0.7)
        }),
        case("RMSNormalization", &[&x, &gain], &[0, 1]),
        case("SimplifiedLayerNormalization", &[&x, &gain], &[0, 1]),
        case("SimplifiedLayerNormalization", &[&x, &gain], &[0]).contrib(),
        case("LayerNormalization", &[&x, &gain, &bias], &[0, 1, 2]),
        case(
            "SkipSimplifiedLayerNormalization",
            &[&x, &up, &gain, &bias],
            &[0, 1],
        )
        .contrib()
        .outputs(&["y", "", "", "sum"]),
        case("RotaryEmbedding", &[&heads, &cos, &sin], &[0]),
        case(
            "RotaryEmbedding",
            &[
                &floats(&[2, 5, 12], 18),
                &places,
                &table(&cos),
                &table(&sin),
            ],
            &[0],
        )
        .contrib(),
        case(
            "RotaryEmbedding",
            &[&packed, &table(&cos), &table(&sin), &places],
            &[0],
        )
        .with(|n| n.with_int("num_heads", 3).with_int("interleaved", 1)),
        case(
            "RotaryEmbedding",
            &[
                &heads.narrow(2, 0, 4).unwrap(),
                &one,
                &table(&cos),
                &table(&sin),
            ],
            &[0],
        )
        .contrib(),
    ]
}

#[test]
fn every_gradient_agrees_with_differences() {
    for case in cases() {
        for &input in &case.checked {
            agrees(&case, input);
        }
    }
}

#[test]
fn every_operator_that_passes_a_gradient_has_a_case() {
    let key = |domain: &str, name: &str| format!("{domain}.{name}");
    let checked: BTreeSet<String> = cases()
        .iter()
        .map(|case| key(case.node.domain(), case.node.op_type()))
        .collect();
    // Differences of rounded numbers are no derivative; their tests are in straight_through.rs.
    let differentiable =
        |name: &str| !matches!(name, "QuantizeLinear" | "DynamicQuantizeLinear" | "Round");
    let flowing = all().filter(|o| matches!(o.gradient, Gradient::Flows | Gradient::FlowsToFirst));
    for operator in flowing.filter(|o| differentiable(o.name)) {
        let name = key(operator.domain, operator.name);
        assert!(checked.contains(&name), "{name} has no case");
    }
}

/// The outputs of the case with `input` in its place.
fn run(case: &Case, at: usize, input: &Tensor) -> Vec<Tensor> {
    let mut inputs = case.inputs.clone();
    inputs[at] = Some(input.clone());
    let call = Call {
        node: &case.node,
        inputs: &inputs,
        tracked: &[],
    };
    (find(&case.node).unwrap().run)(&call).unwrap().outputs
}

/// The outputs that the node names; each has fixed weights, and the sum of all is what is differentiated.
fn weighted(case: &Case, outputs: &[Tensor]) -> f64 {
    let mut sum = 0.0;
    for (at, output) in named(case, outputs) {
        let weights = floats(output.dims(), 90 + at as u32);
        let product = (output * weights).unwrap().to_dtype(DType::F64).unwrap();
        sum += product.sum_all().unwrap().to_scalar::<f64>().unwrap();
    }
    sum
}

fn named<'t>(case: &Case, outputs: &'t [Tensor]) -> Vec<(usize, &'t Tensor)> {
    let names = case.node.output.iter().map(|name| !name.is_empty());
    let all = outputs.iter().enumerate().zip(names);
    all.filter(|(_, named)| *named).map(|(o, _)| o).collect()
}

fn agrees(case: &Case, input: usize) {
    let shown = format!("{} by input {input}", case.node.op_type());
    let x = case.inputs[input].clone().unwrap();
    let tracked: Vec<bool> = (0..case.inputs.len()).map(|at| at == input).collect();
    let call = Call {
        node: &case.node,
        inputs: &case.inputs,
        tracked: &tracked,
    };
    let made = (find(&case.node).unwrap().run)(&call).unwrap();
    let mut grads: Vec<Option<Tensor>> = vec![None; made.outputs.len()];
    for (at, output) in named(case, &made.outputs) {
        grads[at] = Some(floats(output.dims(), 90 + at as u32));
    }
    let grads = made.pull.unwrap_or_else(|| panic!("{shown}: no pull"))(&grads).unwrap();
    let grad = grads[input].clone().unwrap();
    assert_eq!(grad.dims(), x.dims(), "{shown}");
    let grad: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
    let values: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
    let largest = grad.iter().fold(0.1f32, |m, g| m.max(g.abs()));
    for at in 0..values.len() {
        let moved = |by: f32| {
            let mut values = values.clone();
            values[at] += by;
            let x = Tensor::from_vec(values, x.dims(), &Device::Cpu).unwrap();
            weighted(case, &run(case, input, &x))
        };
        let difference = ((moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP)) as f32;
        let wrong = (difference - grad[at]).abs() / largest;
        assert!(
            wrong < TOLERANCE,
            "{shown}: element {at} is {}, by differences {difference}",
            grad[at]
        );
    }
}
