//! Inference on small graphs.

mod branches;
mod operators;

use crate::facts::scoped::ScopeFacts;
use crate::facts::{Facts, Rules, agree};
use crate::graph::build::{int64_vector, node, value};
use crate::graph::scopes::Scope;
use crate::onnx::stored::Model;
use crate::onnx::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::{
    AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, tensor_proto::DataType,
    type_proto,
};

const FLOAT: i32 = DataType::Float as i32;

/// A float input whose sizes are numbers or names.
fn input(name: &str, sizes: &[&str]) -> ValueInfoProto {
    let mut info = value(name, FLOAT, &vec![0; sizes.len()]);
    let kind = info.r#type.as_mut().and_then(|t| t.value.as_mut());
    if let Some(type_proto::Value::TensorType(tensor)) = kind {
        let dims = tensor.shape.iter_mut().flat_map(|s| &mut s.dim);
        for (dim, size) in dims.zip(sizes) {
            *dim = Dimension {
                value: Some(match size.parse() {
                    Ok(number) => dimension::Value::DimValue(number),
                    Err(_) => dimension::Value::DimParam((*size).to_owned()),
                }),
                ..Dimension::default()
            };
        }
    }
    info
}

fn graph(
    input: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
    node: Vec<NodeProto>,
) -> GraphProto {
    GraphProto {
        input,
        initializer,
        node,
        ..GraphProto::default()
    }
}

/// The shape of `value` in `graph`, as text.
fn shape(graph: &GraphProto, value: &str) -> String {
    let facts = ScopeFacts::infer(&Model::default(), graph, &Rules::default());
    let facts: &Facts = facts.get(&Scope::default()).unwrap();
    facts
        .shape(value)
        .map_or_else(|| "unknown".to_owned(), agree::text)
}

#[test]
fn a_reshape_by_sizes_of_its_input_is_followed() {
    let graph = graph(
        vec![input("x", &["batch", "length", "32"])],
        vec![
            int64_vector("first", &[0]),
            int64_vector("rest", &[-1, 2, 16]),
        ],
        vec![
            node("Shape", "shape", &["x"], &["sizes"]),
            node("Gather", "gather", &["sizes", "first"], &["batch"]),
            node("Concat", "concat", &["batch", "rest"], &["target"]).with_int("axis", 0),
            node("Reshape", "reshape", &["x", "target"], &["y"]),
        ],
    );
    assert_eq!(shape(&graph, "y"), "[batch, length, 2, 16]");
}

#[test]
fn a_slice_in_steps_has_a_length_and_a_reshape_of_nothing_has_no_heads() {
    // (start, end, step) of an axis of 10, and numpy's len(x[start:end:step])
    let slices = [
        (0, 10, 3, 4),
        (1, -1, 4, 2),
        (8, 1, 5, 0),
        (-1, -100, -1, 10),
        (7, 2, -2, 3),
        (2, 7, -1, 0),
    ];
    for (start, end, step, length) in slices {
        let graph = graph(
            vec![input("x", &["batch", "T", "10"])],
            vec![
                int64_vector("starts", &[start]),
                int64_vector("ends", &[end]),
                int64_vector("axes", &[2]),
                int64_vector("steps", &[step]),
                int64_vector("heads", &[0, 0, -1, 1]),
            ],
            vec![
                node(
                    "Slice",
                    "slice",
                    &["x", "starts", "ends", "axes", "steps"],
                    &["y"],
                ),
                node("Reshape", "reshape", &["y", "heads"], &["z"]),
            ],
        );
        assert_eq!(shape(&graph, "z"), format!("[batch, T, {length}, 1]"));
    }
}

#[test]
fn what_a_concat_joins_agrees_on_the_other_axes() {
    let graph = graph(
        vec![
            input("past", &["b0", "2", "P", "16"]),
            input("new", &["b1", "2", "T", "16"]),
        ],
        Vec::new(),
        vec![node("Concat", "append", &["past", "new"], &["present"]).with_int("axis", 2)],
    );
    let both = [shape(&graph, "past"), shape(&graph, "new")];
    assert!(both.iter().all(|s| s.starts_with("[b1, ")), "{both:?}");
}

#[test]
fn a_name_that_promises_nothing_makes_no_two_sizes_equal() {
    let sum = |names: &[&str; 2], other: &[&str; 2]| {
        let graph = graph(
            vec![input("x", names), input("y", other)],
            Vec::new(),
            vec![node("Add", "add", &["x", "y"], &["z"])],
        );
        shape(&graph, "z")
    };
    assert_eq!(sum(&["b", "t"], &["b", "t"]), "[b, t]");
    // One name for two axes of an input, a name without a letter, a name that says that nothing is known.
    for names in [["f", "f"], ["?", "-"], ["unknown", "None"]] {
        let text = sum(&names, &names);
        assert!(
            text.starts_with("[?") && text.contains(", ?"),
            "{names:?}: {text}"
        );
    }
}

#[test]
fn sizes_below_zero_are_no_sizes() {
    let tensor = |name: &str, dims: &[i64]| TensorProto {
        name: Some(name.to_owned()),
        dims: dims.to_vec(),
        data_type: Some(FLOAT),
        ..TensorProto::default()
    };
    let graph = graph(
        Vec::new(),
        vec![
            tensor("t", &[-5]),
            int64_vector("below", &[-5]),
            int64_vector("zero", &[0]),
            int64_vector("one", &[1]),
        ],
        vec![
            node("Slice", "slice", &["t", "zero", "one"], &["s"]),
            node("ConstantOfShape", "fill", &["below"], &["c"]),
            node("Slice", "cut", &["c", "zero", "one"], &["d"]),
            node("Expand", "expand", &["one", "below"], &["e"]),
        ],
    );
    for value in ["t", "s", "c", "d", "e"] {
        assert_eq!(shape(&graph, value), "unknown", "{value}");
    }
}

#[test]
fn a_branch_sees_the_values_around_it() {
    let branch = graph(
        Vec::new(),
        Vec::new(),
        vec![node("Abs", "abs", &["x"], &["y"])],
    );
    let choice = NodeProto {
        attribute: vec![AttributeProto {
            g: Some(branch),
            ..AttributeProto::default()
        }],
        ..node("If", "choice", &["flag"], &["z"])
    };
    let main = graph(vec![input("x", &["b", "4"])], Vec::new(), vec![choice]);
    let facts = ScopeFacts::infer(&Model::default(), &main, &Rules::default());
    let mut seen = Vec::new();
    let visited = facts.visit::<std::convert::Infallible>(&main, &mut |scoped| {
        let shape = scoped.facts.shape("y").map(agree::text);
        seen.push((scoped.scope.0.len(), shape));
        Ok(())
    });
    assert!(visited.is_ok());
    assert_eq!(seen, [(0, None), (1, Some("[b, 4]".to_owned()))]);
}
