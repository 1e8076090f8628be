//! Shapes of the outputs of `If`.

use super::{FLOAT, graph, input, shape};
use crate::graph::build::{int64_vector, node, value};
use crate::onnx::{GraphProto, NodeProto};

/// A branch that returns 'out', which `nodes` make.
fn branch(nodes: Vec<NodeProto>) -> GraphProto {
    GraphProto {
        output: vec![value("out", FLOAT, &[])],
        ..graph(Vec::new(), vec![int64_vector("own", &[7, 7, 7])], nodes)
    }
}

fn choice(name: &str, output: &str, branches: [GraphProto; 2]) -> NodeProto {
    let [one, other] = branches;
    let choice = node("If", name, &["flag"], &[output]);
    let choice = choice.with_graph("then_branch", one);
    choice.with_graph("else_branch", other)
}

/// The shape of the output of an `If` with these branches, in a graph with an input x [b, 3] and a vector of 3 numbers.
fn chosen(one: GraphProto, other: GraphProto) -> String {
    let graph = graph(
        vec![input("x", &["b", "3"])],
        vec![int64_vector("outer", &[1, 2, 3])],
        vec![choice("choice", "z", [one, other])],
    );
    shape(&graph, "z")
}

fn named(value: &str) -> GraphProto {
    branch(vec![node("Identity", "name", &[value], &["out"])])
}

#[test]
fn branches_agree_on_stored_tensors_wherever_they_are_stored() {
    assert_eq!(chosen(named("own"), named("own")), "[3]");
    assert_eq!(chosen(named("outer"), named("own")), "[3]");
    assert_eq!(chosen(named("x"), named("x")), "[b, 3]");
    let inner = || choice("inner", "out", [named("own"), named("outer")]);
    assert_eq!(chosen(branch(vec![inner()]), named("own")), "[3]");
}

#[test]
fn branches_of_other_ranks_or_of_computed_values_agree_on_nothing() {
    assert_eq!(chosen(named("x"), named("own")), "unknown");
    let computed = || branch(vec![node("Abs", "abs", &["x"], &["out"])]);
    assert_eq!(chosen(computed(), computed()), "unknown");
    // A name that nothing makes, and one that makes itself.
    assert_eq!(chosen(named("missing"), named("own")), "unknown");
    assert_eq!(chosen(named("out"), named("own")), "unknown");
}
