//! The algebra of layouts, operator by operator. The source is a cached key [b, g, t, x] of 2 heads and 4 channels. An
//! expected text names the digits of each axis of the result, outermost first; `3x` repeats.

use crate::facts::Rules;
use crate::graph::Graph;
use crate::onnx::stored::Model;
use crate::onnx::tensor_proto::DataType;
use crate::onnx::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::{
    AttributeProto, GraphProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    type_proto,
};

use super::*;

/// An operator, its constant inputs after the value, and its attributes.
struct Op {
    name: &'static str,
    constants: Vec<TensorProto>,
    attributes: Vec<AttributeProto>,
    copies: usize,
}

fn op(name: &'static str, constants: &[&[i64]]) -> Op {
    Op {
        name,
        constants: constants.iter().map(|c| integers(c)).collect(),
        attributes: Vec::new(),
        copies: 1,
    }
}

fn with(mut op: Op, name: &str, i: Option<i64>, ints: &[i64]) -> Op {
    op.attributes.push(AttributeProto {
        name: Some(name.to_owned()),
        i,
        ints: ints.to_vec(),
        ..AttributeProto::default()
    });
    op
}

fn integers(values: &[i64]) -> TensorProto {
    TensorProto {
        data_type: Some(DataType::Int64 as i32),
        dims: vec![values.len() as i64],
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

fn floats(dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        data_type: Some(DataType::Float as i32),
        dims: dims.to_vec(),
        float_data: values.to_vec(),
        ..TensorProto::default()
    }
}

fn reshape(shape: &[i64]) -> Op {
    op("Reshape", &[shape])
}

fn transpose(perm: &[i64]) -> Op {
    with(op("Transpose", &[]), "perm", None, perm)
}

fn unsqueeze(axis: i64) -> Op {
    op("Unsqueeze", &[&[axis]])
}

fn expand(shape: &[i64]) -> Op {
    op("Expand", &[shape])
}

fn tile(repeats: &[i64]) -> Op {
    op("Tile", &[repeats])
}

fn concat(axis: i64, copies: usize) -> Op {
    let op = with(op("Concat", &[]), "axis", Some(axis), &[]);
    Op { copies, ..op }
}

fn gather(axis: i64, indices: &[i64]) -> Op {
    with(op("Gather", &[indices]), "axis", Some(axis), &[])
}

/// `from..to` of one axis.
fn slice(axis: i64, from: i64, to: i64, step: i64) -> Op {
    op("Slice", &[&[from], &[to], &[axis], &[step]])
}

fn cast(to: DataType) -> Op {
    with(op("Cast", &[]), "to", Some(to as i64), &[])
}

fn scaled(name: &'static str, by: TensorProto) -> Op {
    Op {
        constants: vec![by],
        ..op(name, &[])
    }
}

/// The graph that applies `ops` in turn to a key of shape [b, 2, t, 4] and `element` type.
fn chain(element: DataType, ops: Vec<Op>) -> GraphProto {
    let named = |name: &str| Dimension {
        value: Some(dimension::Value::DimParam(name.to_owned())),
        ..Dimension::default()
    };
    let fixed = |size: i64| Dimension {
        value: Some(dimension::Value::DimValue(size)),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(element as i32),
        shape: Some(TensorShapeProto {
            dim: vec![named("b"), fixed(2), named("t"), fixed(4)],
        }),
    };
    let mut graph = GraphProto {
        input: vec![ValueInfoProto {
            name: Some("v0".to_owned()),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(tensor)),
                ..TypeProto::default()
            }),
            ..ValueInfoProto::default()
        }],
        ..GraphProto::default()
    };
    for (at, op) in ops.into_iter().enumerate() {
        let mut input = vec![format!("v{at}"); op.copies];
        for (number, constant) in op.constants.into_iter().enumerate() {
            let name = format!("c{at}_{number}");
            input.push(name.clone());
            graph.initializer.push(TensorProto {
                name: Some(name),
                ..constant
            });
        }
        graph.node.push(NodeProto {
            op_type: Some(op.name.to_owned()),
            input,
            output: vec![format!("v{}", at + 1)],
            attribute: op.attributes,
            ..NodeProto::default()
        });
    }
    graph
}

/// The map after `ops`, or the reason why there is none.
fn after_in(element: DataType, ops: Vec<Op>) -> Result<DigitMap, Reason> {
    let proto = chain(element, ops);
    let graph = Graph::new(&proto);
    let facts = Facts::of_main(&Model::default(), &graph, Rules::default());
    let mut layout = DigitMap::of_source(facts.shape("v0").unwrap());
    for node in &proto.node {
        layout.step(&facts, node, 0, Operand::Key)?;
        // The axes of every map have the sizes of the value.
        let output = node.output.first().unwrap();
        assert_eq!(layout.sizes().as_deref(), facts.shape(output), "{node:?}");
    }
    Ok(layout)
}

fn after(ops: Vec<Op>) -> Result<DigitMap, Reason> {
    after_in(DataType::Float, ops)
}

fn reads(ops: Vec<Op>) -> String {
    after(ops).unwrap().describe()
}

fn opaque(ops: Vec<Op>) -> String {
    match after(ops).unwrap_err() {
        Reason::Opaque { detail, .. } => detail,
        other => panic!("{other}"),
    }
}

#[test]
fn the_source_reads_itself() {
    assert_eq!(reads(vec![]), "[b, g, t, x]");
    assert_eq!(reads(vec![op("Identity", &[])]), "[b, g, t, x]");
}

#[test]
fn a_transpose_moves_axes() {
    assert_eq!(reads(vec![transpose(&[0, 2, 1, 3])]), "[b, t, g, x]");
    assert_eq!(reads(vec![transpose(&[0, 1, 3, 2])]), "[b, g, x, t]");
    assert_eq!(
        reads(vec![transpose(&[0, 2, 1, 3]), transpose(&[0, 2, 1, 3])]),
        "[b, g, t, x]"
    );
    // The default reverses.
    assert_eq!(reads(vec![op("Transpose", &[])]), "[x, t, g, b]");
}

#[test]
fn a_reshape_merges_neighbours_and_splits_them_again() {
    let merged = || vec![transpose(&[0, 2, 1, 3]), reshape(&[0, 0, 8])];
    assert_eq!(reads(merged()), "[b, t, g*x]");
    let mut split = merged();
    split.push(reshape(&[0, 0, 2, 4]));
    assert_eq!(reads(split), "[b, t, g, x]");
    // Heads and positions of one batch, in one axis.
    assert_eq!(reads(vec![reshape(&[0, -1, 4])]), "[b, g*t, x]");
}

#[test]
fn a_digit_that_is_split_walks_with_strides_and_joins_again() {
    let halves = || vec![reshape(&[0, 0, 0, 2, 2])];
    assert_eq!(reads(halves()), "[b, g, t, axis3/2, x]");
    let mut joined = halves();
    joined.push(reshape(&[0, 0, 0, 4]));
    assert_eq!(reads(joined), "[b, g, t, x]");
    // Halves that have changed places do not.
    let mut crossed = halves();
    crossed.extend([transpose(&[0, 1, 2, 4, 3]), reshape(&[0, 0, 0, 4])]);
    assert_eq!(reads(crossed), "[b, g, t, x*axis3/2]");
}

#[test]
fn a_reshape_that_cuts_across_a_symbolic_size_is_refused() {
    // [b, 2, t, 4] as [b, 2, 4, t]: element (0, 0, 0, 1) would be component 1, and for t < 2 another.
    let detail = opaque(vec![reshape(&[0, 2, 4, -1])]);
    assert!(
        detail.contains("does not follow from its input"),
        "{detail}"
    );
}

#[test]
fn axes_of_size_one_come_and_go() {
    assert_eq!(reads(vec![unsqueeze(2)]), "[b, g, 1, t, x]");
    assert_eq!(reads(vec![unsqueeze(-1)]), "[b, g, t, x, 1]");
    assert_eq!(
        reads(vec![unsqueeze(1), op("Squeeze", &[&[1]])]),
        "[b, g, t, x]"
    );
}

#[test]
fn an_expanded_axis_repeats_inside_the_head_where_it_stands_behind_it() {
    // repeat_kv: query head h reads KV head floor(h / 3).
    let repeated = vec![
        unsqueeze(2),
        expand(&[1, 1, 3, 1, 1]),
        reshape(&[0, 6, -1, 4]),
    ];
    assert_eq!(reads(repeated), "[b, g*3x, t, x]");
    // In front of it, heads alternate: h mod 2.
    let interleaved = vec![
        unsqueeze(1),
        expand(&[1, 3, 1, 1, 1]),
        reshape(&[0, 6, -1, 4]),
    ];
    assert_eq!(reads(interleaved), "[b, 3x*g, t, x]");
}

#[test]
fn an_expand_to_the_size_there_is_changes_nothing() {
    assert_eq!(reads(vec![expand(&[1, 2, 1, 4])]), "[b, g, t, x]");
    assert_eq!(reads(vec![expand(&[1, 1, 1, 1, 1])]), "[1, b, g, t, x]");
}

#[test]
fn a_tile_and_a_concat_of_copies_repeat_outside() {
    assert_eq!(reads(vec![tile(&[1, 3, 1, 1])]), "[b, 3x*g, t, x]");
    assert_eq!(reads(vec![concat(1, 3)]), "[b, 3x*g, t, x]");
    // Copies along an axis of size one are a repetition inside.
    let inside = vec![unsqueeze(2), concat(2, 3), reshape(&[0, 6, -1, 4])];
    assert_eq!(reads(inside), "[b, g*3x, t, x]");
    // Repetitions of repetitions are one.
    let twice = vec![unsqueeze(2), tile(&[1, 1, 2, 1, 1]), concat(2, 3)];
    assert_eq!(reads(twice), "[b, g, 6x, t, x]");
}

#[test]
fn a_gather_repeats_heads_in_turn_or_all_of_them() {
    assert_eq!(reads(vec![gather(1, &[0, 0, 1, 1])]), "[b, g*2x, t, x]");
    assert_eq!(reads(vec![gather(1, &[0, 1, 0, 1])]), "[b, 2x*g, t, x]");
    assert_eq!(reads(vec![gather(1, &[0, -1])]), "[b, g, t, x]");
}

#[test]
fn a_gather_in_any_other_order_is_refused_with_the_order() {
    for order in [&[1, 0][..], &[0, 0], &[0], &[0, 1, 1, 0]] {
        let reason = after(vec![gather(1, order)]).unwrap_err();
        let expected = Reason::PermutedHeads {
            operand: Operand::Key,
            order: order.to_vec(),
        };
        assert_eq!(reason, expected);
    }
    assert_eq!(
        opaque(vec![gather(2, &[0, 1])]),
        "the length of its axis is not constant"
    );
}

#[test]
fn a_slice_is_its_input_or_is_refused() {
    assert_eq!(reads(vec![slice(1, 0, 2, 1)]), "[b, g, t, x]");
    assert_eq!(reads(vec![slice(3, 0, i64::MAX, 1)]), "[b, g, t, x]");
    for (axis, from, to) in [(1, 0, 1), (3, 2, 4), (1, -1, i64::MAX)] {
        let reason = after(vec![slice(axis, from, to, 1)]).unwrap_err();
        let expected = Reason::PartialRead {
            operand: Operand::Key,
            axis: axis as usize,
        };
        assert_eq!(reason, expected, "{from}..{to}");
    }
    // As long as its input, and in another order.
    let backwards = opaque(vec![slice(1, -1, i64::MIN, -1)]);
    assert_eq!(backwards, "its steps are not constant ones");
}

#[test]
fn a_cast_may_round_once_and_never_widen_what_was_rounded() {
    let (half, single, double) = (DataType::Float16, DataType::Float, DataType::Double);
    let casts = |element, to: &[DataType]| {
        after_in(element, to.iter().map(|&to| cast(to)).collect()).is_ok()
    };
    assert!(casts(single, &[half]));
    assert!(casts(half, &[single]));
    assert!(casts(half, &[single, half]), "half to single loses nothing");
    assert!(casts(single, &[double, single]));
    assert!(
        !casts(single, &[half, single]),
        "rounded, and widened again"
    );
    assert!(!casts(double, &[single, half, double]));
}

#[test]
fn scalar_factors_multiply() {
    let scale = |ops| after(ops).unwrap().scale;
    let half = || floats(&[], &[0.5]);
    assert_eq!(scale(vec![scaled("Mul", half())]), 0.5);
    assert_eq!(
        scale(vec![
            scaled("Mul", half()),
            transpose(&[0, 1, 3, 2]),
            scaled("Div", floats(&[1], &[4.0]))
        ]),
        0.125
    );
    // The same number everywhere is one number.
    assert_eq!(scale(vec![scaled("Mul", floats(&[4], &[3.0; 4]))]), 3.0);
    let reason = after(vec![scaled("Mul", floats(&[4], &[1.0, 1.0, 1.0, 2.0]))]);
    assert!(matches!(reason, Err(Reason::ScaleNotConstant { .. })));
}

#[test]
fn a_factor_of_higher_rank_adds_axes_and_one_that_repeats_is_refused() {
    let five = floats(&[1, 1, 1, 1, 1], &[1.0]);
    assert_eq!(reads(vec![scaled("Mul", five)]), "[1, b, g, t, x]");
    let repeating = floats(&[3, 1, 1, 1, 1], &[1.0; 3]);
    assert_eq!(
        opaque(vec![scaled("Mul", repeating)]),
        "its constant repeats the value along an axis"
    );
}

#[test]
fn an_operator_that_computes_is_refused() {
    assert_eq!(opaque(vec![op("Relu", &[])]), "it is not a layout operator");
}
