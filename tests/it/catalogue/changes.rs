//! Changes of graphs, with which a reason is caused.

use gqa2mla_passes::graph::build::{int64_vector, node, value};
use gqa2mla_passes::onnx::tensor_proto::DataType;
use gqa2mla_passes::onnx::tensor_shape_proto::dimension::Value as Size;
use gqa2mla_passes::onnx::type_proto::Value;
use gqa2mla_passes::onnx::{GraphProto, NodeProto, TensorProto};
use gqa2mla_passes::recognize::site::Site;

const FLOAT: i32 = DataType::Float as i32;
const LAST: i64 = i64::MAX;

/// The row of 16 numbers 1, 2, ... 16.
pub fn row() -> TensorProto {
    let numbers = (1..=16).flat_map(|n: u8| f32::from(n).to_le_bytes());
    TensorProto {
        name: Some("row".to_owned()),
        dims: vec![16],
        data_type: Some(FLOAT),
        raw_data: Some(numbers.collect::<Vec<u8>>().into()),
        ..TensorProto::default()
    }
}

/// Lets input `input` of node `at` read what `new` makes of it, in front of the node.
pub fn wrap(graph: &mut GraphProto, (at, input): (usize, usize), new: NodeProto) {
    let mut new = new;
    new.input.insert(0, graph.node[at].input[input].clone());
    graph.node[at].input[input].clone_from(&new.output[0]);
    graph.node.insert(at, new);
}

/// The place of the operand of keys, or of values.
pub fn keys(site: &Site) -> (usize, usize) {
    (site.score.0, 1)
}

pub fn values(site: &Site) -> (usize, usize) {
    (site.output.0, 1)
}

pub fn only_a_part(graph: &mut GraphProto, place: (usize, usize), axis: i64) {
    let bounds = [("from", 1), ("to", LAST), ("axis", axis)];
    graph
        .initializer
        .extend(bounds.map(|(name, n)| int64_vector(name, &[n])));
    let slice = node("Slice", "part", &["from", "to", "axis"], &["part"]);
    wrap(graph, place, slice);
}

pub fn with_another_row(graph: &mut GraphProto, place: (usize, usize), op: &str) {
    graph.initializer.push(row());
    wrap(graph, place, node(op, "uneven", &["row"], &["uneven"]));
}

pub fn turned(graph: &mut GraphProto, place: (usize, usize)) {
    let turn = node("Transpose", "turned", &[], &["turned"]);
    wrap(graph, place, turn.with_ints("perm", &[0, 1, 3, 2]));
}

/// Takes `name` out of the outputs of the graph.
pub fn kept_inside(graph: &mut GraphProto, name: &str) {
    graph.output.retain(|output| output.name() != name);
}

/// Lets all readers of the rows of a cache read the new rows alone, and takes the cache out of the interface.
pub fn uncached(graph: &mut GraphProto, name: &str, new: &str) {
    let present = format!("present.0.{name}");
    kept_inside(graph, &present);
    graph.node.retain(|n| n.output != [present.as_str()]);
    let past = format!("past_key_values.0.{name}");
    graph.input.retain(|input| input.name() != past);
    for input in graph.node.iter_mut().flat_map(|n| &mut n.input) {
        if *input == present {
            new.clone_into(input);
        } else if *input == past {
            // Masks are as long as any past.
            *input = format!("past_key_values.1.{name}");
        }
    }
}

/// A second product of the same operands as node `at`, which `joined` adds to the first.
pub fn twice(graph: &mut GraphProto, at: usize, joined: bool) {
    let first = &mut graph.node[at];
    let product = first.output[0].clone();
    let inputs = first.input.clone();
    let [left, right] = [inputs[0].as_str(), inputs[1].as_str()];
    let mut again = vec![node("MatMul", "again", &[left, right], &["again"])];
    if joined {
        first.output[0] = "once".to_owned();
        again.push(node("Add", "joined", &["once", "again"], &[&product]));
    } else {
        graph.output.push(value("again", FLOAT, &[]));
        let output = graph.output.last_mut().unwrap();
        if let Some(Value::TensorType(tensor)) = &mut output.r#type.as_mut().unwrap().value {
            tensor.shape = None;
        }
    }
    graph.node.splice(at + 1..at + 1, again);
}

/// The shape of the queries is an input of the graph.
pub fn queries_of_any_shape(graph: &mut GraphProto, site: &Site) {
    graph
        .input
        .push(value("told", DataType::Int64.into(), &[4]));
    let told = node("Reshape", "told_queries", &["told"], &["told_queries"]);
    wrap(graph, (site.score.0, 0), told);
}

/// The queries are an input of the graph, whose sizes are all names.
pub fn queries_of_any_size(graph: &mut GraphProto, site: &Site) {
    let mut told = value("told_queries", FLOAT, &[0; 4]);
    if let Some(Value::TensorType(tensor)) = &mut told.r#type.as_mut().unwrap().value {
        let dims = tensor.shape.iter_mut().flat_map(|shape| &mut shape.dim);
        for (dim, name) in dims.zip(["batch", "heads", "length", "size"]) {
            dim.value = Some(Size::DimParam(name.to_owned()));
        }
    }
    graph.input.push(told);
    graph.node[site.score.0].input[0] = "told_queries".to_owned();
}

/// The first attention is none that is known.
pub fn without_softmax(graph: &mut GraphProto, _: &Site) {
    let softmax = graph.node.iter_mut().find(|n| n.op_type() == "Softmax");
    softmax.unwrap().op_type = Some("Hardmax".to_owned());
}

/// A `Shape` of the operand of keys, whose first axis is batch times heads there, is an output of the graph.
pub fn asked(graph: &mut GraphProto, site: &Site) {
    let path = &site.key.path;
    let is_packed = |n: &&NodeProto| {
        n.op_type() == "Transpose" && n.attribute.iter().any(|a| a.ints == [0, 2, 1])
    };
    let makers = path
        .iter()
        .filter_map(|v| graph.node.iter().find(|n| n.output[0] == **v));
    let packed = makers.clone().find(is_packed).expect("keys of three axes");
    let rows = packed.input[0].clone();
    let at = graph.node.iter().position(|n| n.output[0] == rows).unwrap();
    let shape = node("Shape", "asked", &[&rows], &["asked"]);
    graph.node.insert(at + 1, shape);
    graph
        .output
        .push(value("asked", DataType::Int64.into(), &[3]));
}

/// Keys of one head, and values that are repeated in front of their cache.
pub fn values_repeated_before(graph: &mut GraphProto, site: &Site) {
    graph.initializer.push(int64_vector("times", &[1, 8, 1, 1]));
    let joined = site.value.source.clone();
    let at = graph
        .node
        .iter()
        .position(|n| n.output[0] == joined)
        .unwrap();
    wrap(
        graph,
        (at, 1),
        node("Tile", "repeated", &["times"], &["repeated"]),
    );
    for name in ["past_key_values.0.value", "present.0.value"] {
        let all = graph.input.iter_mut().chain(&mut graph.output);
        for info in all.filter(|v| v.name() == name) {
            if let Some(Value::TensorType(tensor)) = &mut info.r#type.as_mut().unwrap().value {
                tensor.shape.as_mut().unwrap().dim[1].value = Some(Size::DimValue(8));
            }
        }
    }
    graph.value_info.clear();
    let product = graph
        .node
        .iter()
        .position(|n| n.op_type() == "MatMul" && n.input[0] == site.probabilities);
    graph.node[product.unwrap()].input[1] = joined;
}

/// The rows of a static cache are written into a buffer that is computed from the past.
pub fn written_elsewhere(graph: &mut GraphProto, present: &str) {
    let mut nodes = graph.node.iter_mut();
    let write = nodes.find(|n| n.output == [present]).unwrap();
    let past = std::mem::replace(&mut write.input[0], "negated".to_owned());
    let other = node("Neg", "negate", &[&past], &["negated"]);
    graph.node.insert(0, other);
}

/// Keys and values of the first layer come out under each other's name.
pub fn exchanged(graph: &mut GraphProto, _: &Site) {
    let names = ["present.0.value", "present.0.key"];
    let nodes = graph.node.iter_mut();
    for value in nodes.flat_map(|n| n.input.iter_mut().chain(&mut n.output)) {
        if let Some(at) = names.iter().position(|name| name == value) {
            names[1 - at].clone_into(value);
        }
    }
}
