//! Shapes of the outputs of single operators.

use super::{graph, input, shape};
use crate::graph::build::{int64_vector, node};
use crate::onnx::NodeProto;

/// The shape of 'y', which `node` makes of x [B, 6, T], of sequences s [B, T, 6], of images i [B, 6, 9, 9], of the weights
/// w [8, 6, 4] and k [6, 5, 3, 3], and of numbers.
fn made(node: NodeProto) -> String {
    let numbers = [
        ("one", vec![1]),
        ("two", vec![2]),
        ("pads", vec![0, 1, 0, 0, 2, 3]),
        ("two_pads", vec![2, 3]),
        ("axes", vec![-1]),
        ("seven", vec![7]),
    ];
    let graph = graph(
        vec![
            input("x", &["B", "6", "T"]),
            input("s", &["B", "T", "6"]),
            input("i", &["B", "6", "9", "9"]),
            input("w", &["8", "6", "4"]),
            input("k", &["6", "5", "3", "3"]),
            input("row", &["6"]),
        ],
        numbers.map(|(name, n)| int64_vector(name, &n)).to_vec(),
        vec![node],
    );
    shape(&graph, "y")
}

fn of(op: &str, inputs: &[&str]) -> NodeProto {
    node(op, "n", inputs, &["y"])
}

#[test]
fn a_window_moves_over_the_spatial_axes() {
    let conv = || of("Conv", &["x", "w"]);
    assert_eq!(made(conv().with_ints("pads", &[3, 0])), "[B, 8, T]");
    assert_eq!(made(conv()), "[B, 8, T+-3]");
    let halves = made(conv().with_ints("strides", &[2]));
    assert!(halves.starts_with("[B, 8, ?"), "{halves}");
    let images = || of("Conv", &["i", "k"]).with_ints("strides", &[2, 1]);
    assert_eq!(made(images()), "[B, 6, 4, 7]");
    assert_eq!(
        made(images().with_ints("dilations", &[1, 4])),
        "[B, 6, 4, 1]"
    );
    assert_eq!(
        made(images().with_text("auto_pad", "SAME_UPPER")),
        "[B, 6, 5, 9]"
    );
    let back = of("ConvTranspose", &["i", "k"]).with_ints("strides", &[2, 1]);
    assert_eq!(made(back.with_int("group", 2)), "[B, 10, 19, 11]");
    let pool = |op| of(op, &["i"]).with_ints("kernel_shape", &[2, 2]);
    assert_eq!(
        made(pool("MaxPool").with_ints("strides", &[2, 2])),
        "[B, 6, 4, 4]"
    );
    assert_eq!(made(pool("AveragePool")), "[B, 6, 8, 8]");
    assert_eq!(made(of("GlobalAveragePool", &["i"])), "[B, 6, 1, 1]");
    // A weight of another rank fits no image.
    assert_eq!(made(of("Conv", &["i", "w"])), "unknown");
}

#[test]
fn pads_add_to_the_axes() {
    assert_eq!(made(of("Pad", &["s", "pads"])), "[B, T+3, 9]");
    assert_eq!(
        made(of("Pad", &["s", "two_pads", "", "axes"])),
        "[B, T, 11]"
    );
    let old = of("Pad", &["s"]).with_ints("pads", &[0, 0, -1, 0, 0, -2]);
    assert_eq!(made(old), "[B, T, 3]");
}

#[test]
fn letters_of_an_equation_are_sizes() {
    let einsum =
        |inputs: &[&str], equation| made(of("Einsum", inputs).with_text("equation", equation));
    assert_eq!(einsum(&["s", "w"], "btd, odk -> btok"), "[B, T, 8, 4]");
    assert_eq!(einsum(&["s", "x"], "...td,...du->...tu"), "[B, T, T]");
    assert_eq!(einsum(&["s", "row"], "btd,d"), "[B, T]");
    assert_eq!(einsum(&["s"], "bt->b"), "unknown");
}

#[test]
fn picked_elements_have_the_count_of_k() {
    assert_eq!(made(of("TopK", &["s", "two"])), "[B, T, 2]");
    assert_eq!(
        made(of("TopK", &["s", "two"]).with_int("axis", 1)),
        "[B, 2, 6]"
    );
    assert_eq!(made(of("ArgMax", &["s"]).with_int("axis", -1)), "[B, T, 1]");
    let flat = of("ArgMin", &["s"]).with_int("axis", 1);
    assert_eq!(made(flat.with_int("keepdims", 0)), "[B, 6]");
    assert_eq!(made(of("OneHot", &["s", "seven", "row"])), "[B, T, 6, 7]");
    let some = made(of("Compress", &["s", "flags"]).with_int("axis", 1));
    assert!(
        some.starts_with("[B, ?") && some.ends_with(", 6]"),
        "{some}"
    );
}

#[test]
fn several_operands_are_broadcast() {
    for op in ["Sum", "Mean", "Max", "Min"] {
        assert_eq!(made(of(op, &["s", "row", "s"])), "[B, T, 6]", "{op}");
    }
    assert_eq!(made(of("PRelu", &["s", "row"])), "[B, T, 6]");
}

#[test]
fn a_reduction_over_no_axes_may_be_none() {
    let all = || node("ReduceSum", "n", &["s"], &["y"]);
    assert_eq!(made(all()), "[1, 1, 1]");
    assert_eq!(made(all().with_int("noop_with_empty_axes", 1)), "[B, T, 6]");
    assert_eq!(made(of("ReduceLogSumExp", &["s", "axes"])), "[B, T, 1]");
}

#[test]
fn products_of_integers_that_a_runtime_has_fused_have_rows_and_columns() {
    let contrib = |op, inputs: &[&str]| {
        let mut node = of(op, inputs);
        node.domain = Some("com.microsoft".to_owned());
        made(node)
    };
    let operands = ["s", "x", "one", "one"];
    assert_eq!(contrib("MatMulIntegerToFloat", &operands), "[B, T, T]");
    assert_eq!(
        contrib("DynamicQuantizeMatMul", &operands[..3]),
        "[B, T, T]"
    );
}
