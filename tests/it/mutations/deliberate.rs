//! Deliberate changes of one export, and what has to become of each.

use gqa2mla_passes::graph::build::{int64_vector as integers, node};
use gqa2mla_passes::onnx::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};

use super::Fate;

fn find(graph: &GraphProto, op: &str, number: usize) -> usize {
    let found = graph
        .node
        .iter()
        .enumerate()
        .filter(|(_, n)| n.op_type() == op);
    found
        .map(|(i, _)| i)
        .nth(number)
        .unwrap_or_else(|| panic!("no {op} number {number}"))
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.to_vec(),
        data_type: Some(DataType::Float as i32),
        raw_data: Some(
            values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
                .into(),
        ),
        ..TensorProto::default()
    }
}

/// The nodes of layer 0 of `dynamo18-llama` that mutations change, by what they are for.
pub struct Places {
    score: usize,
    product: usize,
    softmax: usize,
    key_concat: usize,
    value_concat: usize,
}

pub fn places(graph: &GraphProto) -> Places {
    let softmax = find(graph, "Softmax", 0);
    let product = (softmax..graph.node.len())
        .find(|&i| graph.node[i].op_type() == "MatMul")
        .unwrap();
    let score = (0..softmax)
        .rev()
        .find(|&i| graph.node[i].op_type() == "MatMul")
        .unwrap();
    let made = |value: &str| {
        graph
            .node
            .iter()
            .position(|n| n.output.iter().any(|o| o == value))
            .unwrap()
    };
    Places {
        score,
        product,
        softmax,
        key_concat: made("present.0.key"),
        value_concat: made("present.0.value"),
    }
}

/// Puts `new` in front of node `at` and lets input `input` of that node read `value`.
fn insert(graph: &mut GraphProto, at: usize, input: usize, new: Vec<NodeProto>, value: &str) {
    graph.node[at].input[input] = value.to_owned();
    graph.node.splice(at..at, new);
}

/// A deliberate change of `dynamo18-llama`, and what has to become of it.
pub type Mutation = (&'static str, fn(&mut GraphProto, &Places), Fate);

fn wrap(
    graph: &mut GraphProto,
    at: usize,
    input: usize,
    op: &str,
    extra: Option<TensorProto>,
    change: impl FnOnce(NodeProto) -> NodeProto,
) {
    let old = graph.node[at].input[input].clone();
    let name = format!("mutated_{at}_{input}");
    let mut inputs = vec![old.as_str()];
    if let Some(tensor) = &extra {
        inputs.push(tensor.name());
    }
    let new = change(node(op, &name, &inputs, &[&name]));
    graph.initializer.extend(extra.clone());
    insert(graph, at, input, vec![new], &name);
}

pub fn mutations() -> Vec<Mutation> {
    use Fate::{Exact, Refused};
    vec![
        (
            "one head of the key has another scale",
            |g, p| {
                wrap(
                    g,
                    p.score,
                    1,
                    "Mul",
                    Some(floats(
                        "s",
                        &[1, 8, 1, 1],
                        &[1., 1., 1., 2., 1., 1., 1., 1.],
                    )),
                    |n| n,
                );
            },
            Refused,
        ),
        (
            "one head of the value has another scale",
            |g, p| {
                wrap(
                    g,
                    p.product,
                    1,
                    "Mul",
                    Some(floats(
                        "s",
                        &[1, 8, 1, 1],
                        &[1., 1., 1., 2., 1., 1., 1., 1.],
                    )),
                    |n| n,
                );
            },
            Refused,
        ),
        (
            "the heads of the key are permuted",
            |g, p| {
                wrap(
                    g,
                    p.score,
                    1,
                    "Gather",
                    Some(integers("i", &[0, 1, 2, 4, 3, 5, 6, 7])),
                    |n| n.with_int("axis", 1),
                );
            },
            Refused,
        ),
        (
            "the heads of the value are reversed",
            |g, p| {
                wrap(
                    g,
                    p.product,
                    1,
                    "Gather",
                    Some(integers("i", &[7, 6, 5, 4, 3, 2, 1, 0])),
                    |n| n.with_int("axis", 1),
                );
            },
            Refused,
        ),
        (
            "the heads of the key are gathered in order",
            |g, p| {
                wrap(
                    g,
                    p.score,
                    1,
                    "Gather",
                    Some(integers("i", &[0, 1, 2, 3, 4, 5, 6, 7])),
                    |n| n.with_int("axis", 1),
                );
            },
            Exact,
        ),
        (
            "the key passes a tanh",
            |g, p| wrap(g, p.score, 1, "Tanh", None, |n| n),
            Refused,
        ),
        (
            "the value passes a tanh",
            |g, p| wrap(g, p.product, 1, "Tanh", None, |n| n),
            Refused,
        ),
        (
            "the key is negated",
            |g, p| wrap(g, p.score, 1, "Neg", None, |n| n),
            Refused,
        ),
        (
            "a constant is added to the key",
            |g, p| wrap(g, p.score, 1, "Add", Some(floats("c", &[1], &[0.5])), |n| n),
            Refused,
        ),
        (
            "the key is doubled",
            |g, p| wrap(g, p.score, 1, "Mul", Some(floats("c", &[1], &[2.])), |n| n),
            Exact,
        ),
        (
            "the value is halved by division",
            |g, p| wrap(g, p.product, 1, "Div", Some(floats("c", &[], &[2.])), |n| n),
            Exact,
        ),
        (
            "the query passes a tanh",
            |g, p| wrap(g, p.score, 0, "Tanh", None, |n| n),
            Exact,
        ),
        (
            "the probabilities are squared",
            |g, p| {
                let value = g.node[p.product].input[0].clone();
                let new = node("Mul", "squared", &[&value, &value], &["squared"]);
                insert(g, p.product, 0, vec![new], "squared");
            },
            Exact,
        ),
        (
            "the softmax runs over the queries",
            |g, p| {
                let axis = g.node[p.softmax]
                    .attribute
                    .iter_mut()
                    .find(|a| a.name() == "axis")
                    .unwrap();
                axis.i = Some(2);
            },
            Exact,
        ),
        (
            "keys and values are exchanged behind the cache",
            |g, p| {
                let chain = |g: &GraphProto, of: &str| {
                    g.node
                        .iter()
                        .position(|n| n.op_type() == "Unsqueeze" && n.input[0] == of)
                        .unwrap()
                };
                let (k, v) = (chain(g, "present.0.key"), chain(g, "present.0.value"));
                let _ = p;
                g.node[k].input[0] = "present.0.value".to_owned();
                g.node[v].input[0] = "present.0.key".to_owned();
                // Each product is proved by itself, so it is the cache that goes by the other name, and nothing else changes.
            },
            Exact,
        ),
        (
            "both products read the keys",
            |g, p| {
                let _ = p;
                let v = g
                    .node
                    .iter()
                    .position(|n| n.op_type() == "Unsqueeze" && n.input[0] == "present.0.value")
                    .unwrap();
                g.node[v].input[0] = "present.0.key".to_owned();
            },
            Refused,
        ),
        (
            "the new key stands in front of the past",
            |g, p| g.node[p.key_concat].input.swap(0, 1),
            Refused,
        ),
        (
            "the new value stands in front of the past",
            |g, p| g.node[p.value_concat].input.swap(0, 1),
            Refused,
        ),
        (
            "the cache is read a second time",
            |g, p| {
                let _ = p;
                let new = node("ReduceSum", "total", &["present.0.key"], &["total"])
                    .with_int("keepdims", 0);
                let logits = g
                    .node
                    .iter()
                    .position(|n| n.output.iter().any(|o| o == "logits"))
                    .unwrap();
                g.node[logits].output[0] = "plain_logits".to_owned();
                g.node.push(new);
                g.node
                    .push(node("Add", "sum", &["plain_logits", "total"], &["logits"]));
            },
            Refused,
        ),
        (
            "the repeated key is an output",
            |g, p| {
                let value = g.node[p.score].input[1].clone();
                let mut info = g.output[0].clone();
                info.name = Some(value);
                g.output.push(info);
            },
            Refused,
        ),
        (
            "the key is rounded to half precision and back",
            |g, p| {
                wrap(g, p.score, 1, "Cast", None, |n| n.with_int("to", 10));
                let at = places(g).score;
                wrap(g, at, 1, "Cast", None, |n| n.with_int("to", 1));
            },
            Refused,
        ),
        (
            "the key is widened to double precision and back",
            |g, p| {
                wrap(g, p.key_concat, 1, "Cast", None, |n| n.with_int("to", 11));
                let at = places(g).key_concat;
                wrap(g, at, 1, "Cast", None, |n| n.with_int("to", 1));
            },
            Exact,
        ),
        (
            "the last key is cut off",
            |g, p| {
                g.initializer.extend([
                    integers("zero", &[0]),
                    integers("end", &[-1]),
                    integers("last", &[3]),
                ]);
                let value = g.node[p.score].input[1].clone();
                let new = node("Slice", "cut", &[&value, "zero", "end", "last"], &["cut"]);
                insert(g, p.score, 1, vec![new], "cut");
            },
            Refused,
        ),
        (
            "the whole key is sliced",
            |g, p| {
                g.initializer.extend([
                    integers("zero", &[0]),
                    integers("end", &[i64::MAX]),
                    integers("last", &[3]),
                ]);
                let value = g.node[p.score].input[1].clone();
                let new = node("Slice", "cut", &[&value, "zero", "end", "last"], &["cut"]);
                insert(g, p.score, 1, vec![new], "cut");
            },
            Exact,
        ),
        (
            "the value is transposed twice",
            |g, p| {
                wrap(g, p.product, 1, "Transpose", None, |n| {
                    n.with_ints("perm", &[0, 1, 3, 2])
                });
                let at = places(g).product;
                wrap(g, at, 1, "Transpose", None, |n| {
                    n.with_ints("perm", &[0, 1, 3, 2])
                });
            },
            Exact,
        ),
        (
            "the key is repeated by Tile in front of the cache's own heads",
            |g, p| {
                let _ = p;
                let at = g
                    .node
                    .iter()
                    .position(|n| n.op_type() == "Unsqueeze" && n.input[0] == "present.0.key")
                    .unwrap();
                let end = g.node[places(g).score].input[1].clone();
                let repeated = g
                    .node
                    .iter()
                    .position(|n| n.op_type() == "Reshape" && n.output[0] == "_unsafe_view")
                    .unwrap();
                assert!(at < repeated && !end.is_empty());
                g.initializer.push(integers("repeats", &[1, 4, 1, 1]));
                g.node[repeated] = node(
                    "Tile",
                    "tiled",
                    &["present.0.key", "repeats"],
                    &["_unsafe_view"],
                );
            },
            Refused,
        ),
    ]
}
