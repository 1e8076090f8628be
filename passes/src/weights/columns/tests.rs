use super::Columns;
use crate::facts::{Facts, Rules};
use crate::graph::Graph;
use crate::graph::build::{int64_vector, node, value};
use crate::onnx::stored::Model;
use crate::onnx::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};

const FLOAT: i32 = DataType::Float as i32;

/// How many different columns the rows `y` [B, G, T, d] of a graph of `nodes` have, of all columns. Inputs: `x` [2, 5, 12], `g`
/// [2, 3, 5, 4], `one` [2, 1, 5, 4], `cos` [1, 1, 5, 4],
/// `gain` [1, 3, 1, 1], `square` [2, 5, 4].
fn distinct(nodes: &[NodeProto], stored: Vec<TensorProto>) -> (usize, usize) {
    distinct_along(&[1, 3], nodes, stored)
}

/// The same of the axes `axes` of `y`.
fn distinct_along(axes: &[usize], nodes: &[NodeProto], stored: Vec<TensorProto>) -> (usize, usize) {
    let graph = GraphProto {
        input: vec![
            value("x", FLOAT, &[2, 5, 12]),
            value("g", FLOAT, &[2, 3, 5, 4]),
            value("one", FLOAT, &[2, 1, 5, 4]),
            value("cos", FLOAT, &[1, 1, 5, 4]),
            value("gain", FLOAT, &[1, 3, 1, 1]),
            value("square", FLOAT, &[2, 5, 4]),
        ],
        node: nodes.to_vec(),
        initializer: stored,
        ..GraphProto::default()
    };
    let view = Graph::new(&graph);
    let facts = Facts::of_main(&Model::default(), &view, Rules::default());
    let mut columns = Columns::new(&view, &facts);
    let mut numbers = columns.of("y", axes).unwrap();
    let all = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    (numbers.len(), all)
}

fn ints(name: &str, values: &[i64]) -> TensorProto {
    int64_vector(name, values)
}

#[test]
fn heads_of_their_own_have_columns_of_their_own() {
    assert_eq!(
        distinct(&[node("Neg", "n", &["g"], &["y"])], vec![]),
        (12, 12)
    );
    let split = [
        node("Reshape", "r", &["x", "shape"], &["h"]),
        node("Transpose", "t", &["h"], &["y"]).with_ints("perm", &[0, 2, 1, 3]),
    ];
    assert_eq!(
        distinct(&split, vec![ints("shape", &[2, 5, 3, 4])]),
        (12, 12)
    );
}

#[test]
fn repeated_heads_are_one_however_they_are_repeated_and_rotated() {
    let rotated = |from: &str| {
        [
            node("Slice", "a", &[from, "two", "end", "three"], &["high"]),
            node("Neg", "b", &["high"], &["minus"]),
            node("Slice", "c", &[from, "zero", "two", "three"], &["low"]),
            node("Concat", "d", &["minus", "low"], &["turned"]).with_int("axis", -1),
            node("Mul", "e", &["turned", "cos"], &["s"]),
            node("Mul", "f", &[from, "cos"], &["c"]),
            node("Add", "g", &["c", "s"], &["y"]),
        ]
    };
    let ways = [
        node("Expand", "h", &["one", "heads"], &["h"]),
        node("Tile", "h", &["one", "times"], &["h"]),
        node("Concat", "h", &["one", "one", "one"], &["h"]).with_int("axis", 1),
        node("Gather", "h", &["g", "first"], &["h"]).with_int("axis", 1),
    ];
    for way in ways {
        let stored = vec![
            ints("heads", &[1, 3, 1, 1]),
            ints("times", &[1, 3, 1, 1]),
            ints("first", &[1, 1, -2]),
            ints("zero", &[0]),
            ints("two", &[2]),
            ints("three", &[3]),
            ints("end", &[i64::MAX]),
        ];
        let op = way.op_type().to_owned();
        let mut nodes = vec![way];
        nodes.extend(rotated("h"));
        assert_eq!(distinct(&nodes, stored), (4, 12), "{op}");
    }
}

#[test]
fn what_treats_heads_differently_ends_their_likeness() {
    let repeated = node("Expand", "h", &["one", "heads"], &["h"]);
    let scaled = node("Mul", "m", &["h", "gain"], &["y"]);
    let stored = || vec![ints("heads", &[1, 3, 1, 1])];
    assert_eq!(distinct(&[repeated.clone(), scaled], stored()), (12, 12));
    let summed = node("Add", "m", &["h", "g"], &["y"]);
    assert_eq!(distinct(&[repeated.clone(), summed], stored()), (12, 12));
    // A constant that is the same for all heads does not.
    let rotated = node("Mul", "m", &["h", "cos"], &["y"]);
    assert_eq!(distinct(&[repeated, rotated], stored()), (4, 12));
}

#[test]
fn one_column_repeated_along_two_axes_is_not_one() {
    // [2, 1, 4, 4] repeated along axis 1, and [2, 4, 1, 4] along axis 2: transposes of each other.
    let nodes = [
        node(
            "Slice",
            "s",
            &["square", "zero", "four", "one_axis"],
            &["rows"],
        ),
        node("Unsqueeze", "a", &["rows", "one_axis"], &["down"]),
        node("Unsqueeze", "b", &["rows", "two_axis"], &["across"]),
        node("Expand", "c", &["down", "shape"], &["first"]),
        node("Expand", "d", &["across", "shape"], &["second"]),
        node("Concat", "e", &["first", "second"], &["y"]).with_int("axis", 3),
    ];
    let stored = vec![
        ints("zero", &[0]),
        ints("four", &[4]),
        ints("one_axis", &[1]),
        ints("two_axis", &[2]),
        ints("shape", &[2, 4, 4, 4]),
    ];
    assert_eq!(distinct_along(&[3], &nodes, stored), (8, 8));
}
