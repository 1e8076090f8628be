//! Mutants of the messages: nodes, attributes, constants, and the inputs and outputs of graphs.

use gqa2mla_passes::onnx::tensor_shape_proto::{Dimension, dimension};
use gqa2mla_passes::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
    type_proto,
};
use prost::Message;

use crate::choices::Choices;
use crate::seeds::Seed;

/// Most changes to one model: more leave nothing of an attention.
const MOST_CHANGES: usize = 4;
/// Sizes, axes and indices that overflow, are negative, empty or off by one.
const NUMBERS: [i64; 13] = [
    0,
    1,
    -1,
    2,
    3,
    -2,
    17,
    1 << 20,
    i32::MAX as i64,
    1 << 40,
    i64::MAX,
    i64::MIN,
    i64::MIN + 1,
];
/// Operators that exports are made of, and that facts, recognition or verification treat by name.
const OPERATORS: [&str; 40] = [
    "Add",
    "Attention",
    "Cast",
    "CastLike",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Cos",
    "CumSum",
    "Div",
    "Einsum",
    "Equal",
    "Expand",
    "Flatten",
    "Gather",
    "GroupQueryAttention",
    "Identity",
    "If",
    "Loop",
    "MatMul",
    "Mul",
    "MultiHeadAttention",
    "Neg",
    "Pow",
    "Range",
    "ReduceSum",
    "Reshape",
    "RotaryEmbedding",
    "ScatterND",
    "Shape",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "Sub",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
];
/// Names that are empty, not ASCII, control the terminal, or look like those that a rewrite makes.
const NAMES: [&str; 6] = [
    "",
    "\u{1b}[2J",
    "é\u{0}",
    "mla/[0,8,-1,16]",
    "model/mla/w_uk",
    "../x",
];

/// The file of `seed` with some of its messages changed.
pub fn mutant(seed: &Seed, choices: &mut Choices<'_>) -> Vec<u8> {
    let mut model = seed.model.clone();
    for _ in 0..=choices.below(MOST_CHANGES) {
        change_model(&mut model, choices);
    }
    model.encode_to_vec()
}

fn change_model(model: &mut ModelProto, choices: &mut Choices<'_>) {
    match choices.below(32) {
        0 => model.ir_version = Some(choices.pick(&NUMBERS)),
        1 => {
            if let Some(opset) = any(&mut model.opset_import, choices) {
                opset.version = Some(choices.pick(&[0, 1, 7, 11, 13, 18, 21, 24, 26, i64::MAX]));
            }
        }
        2 => drop(model.opset_import.pop()),
        3..=5 if !model.functions.is_empty() => {
            let functions = model.functions.clone();
            if let Some(function) = any(&mut model.functions, choices) {
                change_function(function, &functions, choices);
            }
        }
        _ => {
            if let Some(graph) = &mut model.graph {
                change_graph(inner(graph, choices), choices);
            }
        }
    }
}

/// `graph`, or now and then a graph inside it.
fn inner<'g>(graph: &'g mut GraphProto, choices: &mut Choices<'_>) -> &'g mut GraphProto {
    let holds = |node: &NodeProto| node.attribute.iter().any(|a| a.g.is_some());
    let holders: Vec<usize> = (0..graph.node.len())
        .filter(|&at| holds(&graph.node[at]))
        .collect();
    if holders.is_empty() || choices.once_in(3) {
        return graph;
    }
    let node = &mut graph.node[choices.pick(&holders)];
    let mut bodies: Vec<&mut GraphProto> = node
        .attribute
        .iter_mut()
        .filter_map(|a| a.g.as_mut())
        .collect();
    let at = choices.below(bodies.len());
    bodies.swap_remove(at)
}

fn change_function(function: &mut FunctionProto, all: &[FunctionProto], choices: &mut Choices<'_>) {
    match choices.below(6) {
        0 => drop(function.input.pop()),
        1 => function.output.push(name(&function.node, choices)),
        2 => drop(function.opset_import.pop()),
        // A call of any function from any other: some of them never end.
        3 => {
            let called = &all[choices.below(all.len())];
            if let Some(node) = any(&mut function.node, choices) {
                node.op_type.clone_from(&called.name);
                node.domain.clone_from(&called.domain);
            }
        }
        _ => change_nodes(&mut function.node, choices),
    }
}

fn change_graph(graph: &mut GraphProto, choices: &mut Choices<'_>) {
    match choices.below(16) {
        0 => {
            if let Some(info) = any(&mut graph.value_info, choices) {
                change_info(info, choices);
            }
        }
        1 => {
            if let Some(info) = any(&mut graph.input, choices) {
                change_info(info, choices);
            }
        }
        2 => {
            if let Some(info) = any(&mut graph.output, choices) {
                change_info(info, choices);
            }
        }
        3 => {
            let side = match choices.below(2) {
                0 => &mut graph.input,
                _ => &mut graph.output,
            };
            let at = choices.below(side.len());
            match choices.below(3) {
                _ if side.is_empty() => {}
                0 => drop(side.remove(at)),
                1 => side.push(side[at].clone()),
                _ => side[at].name = Some(name(&graph.node, choices)),
            }
        }
        4 => {
            let at = choices.below(graph.initializer.len());
            match choices.below(3) {
                _ if graph.initializer.is_empty() => {}
                0 => drop(graph.initializer.remove(at)),
                1 => graph.initializer.push(graph.initializer[at].clone()),
                _ => graph.initializer[at].name = Some(name(&graph.node, choices)),
            }
        }
        5..=7 => {
            // Constants that shapes and axes are read from are short.
            let short = |tensor: &&mut TensorProto| tensor.dims.iter().product::<i64>() <= 16;
            let mut constants: Vec<_> = graph.initializer.iter_mut().filter(short).collect();
            let at = choices.below(constants.len());
            if let Some(tensor) = constants.get_mut(at) {
                change_tensor(tensor, choices);
            }
        }
        8 => {
            if let Some(tensor) = any(&mut graph.initializer, choices) {
                change_tensor(tensor, choices);
            }
        }
        _ => {
            if choices.once_in(2) {
                graph.value_info.clear();
            }
            change_nodes(&mut graph.node, choices);
        }
    }
}

fn change_nodes(nodes: &mut Vec<NodeProto>, choices: &mut Choices<'_>) {
    let at = choices.below(nodes.len());
    if nodes.is_empty() {
        return;
    }
    match choices.below(12) {
        0 => drop(nodes.remove(at)),
        1 => {
            let other = choices.below(nodes.len());
            nodes.swap(at, other);
        }
        2 => nodes.insert(at, nodes[at].clone()),
        // Any value of the graph, those that come later and its own outputs included.
        3..=5 => {
            let value = name(nodes, choices);
            if let Some(input) = any(&mut nodes[at].input, choices) {
                *input = value;
            }
        }
        6 => {
            let node = &mut nodes[at];
            match choices.below(4) {
                0 => drop(node.input.pop()),
                1 => node.input.push(String::new()),
                2 => drop(node.output.pop()),
                _ => node.input.reverse(),
            }
        }
        7 => {
            let value = name(nodes, choices);
            if let Some(output) = any(&mut nodes[at].output, choices) {
                *output = value;
            }
        }
        8 => {
            nodes[at].op_type = Some(choices.pick(&OPERATORS).to_owned());
            if choices.once_in(4) {
                nodes[at].domain = Some(choices.pick(&["", "com.microsoft", "other"]).to_owned());
            }
        }
        // The same node between the value and one of its readers.
        9 => {
            let (node, made) = (nodes[at].clone(), format!("fuzz_{at}_{}", nodes.len()));
            let mut copy = node.clone();
            let (Some(read), Some(value)) = (copy.input.first_mut(), node.output.first()) else {
                return;
            };
            read.clone_from(value);
            copy.output = vec![made.clone()];
            for reader in &mut nodes[at + 1..] {
                let input = reader.input.iter_mut().find(|input| *input == value);
                if let Some(input) = input {
                    *input = made;
                    break;
                }
            }
            nodes.insert(at + 1, copy);
        }
        _ => {
            let with: Vec<usize> = (0..nodes.len())
                .filter(|&at| !nodes[at].attribute.is_empty())
                .collect();
            if !with.is_empty() {
                let node = &mut nodes[choices.pick(&with)];
                change_attributes(&mut node.attribute, choices);
            }
        }
    }
}

fn change_attributes(attributes: &mut Vec<AttributeProto>, choices: &mut Choices<'_>) {
    let at = choices.below(attributes.len());
    let attribute = &mut attributes[at];
    match choices.below(8) {
        0 => drop(attributes.remove(at)),
        1 => attributes.push(attributes[at].clone()),
        2 => attribute.i = Some(choices.pick(&NUMBERS)),
        3 => attribute.f = Some(choices.pick(&[0.0, -0.0, f32::NAN, f32::INFINITY, f32::MIN, 1.0])),
        4 => {
            attribute.name = Some(
                choices
                    .pick(&["axis", "perm", "to", "value", "scale", ""])
                    .to_owned(),
            )
        }
        5 => attribute.r#type = Some(choices.below(16) as i32),
        6 if attribute.t.is_some() => {
            if let Some(tensor) = &mut attribute.t {
                change_tensor(tensor, choices);
            }
        }
        _ => change_integers(&mut attribute.ints, choices),
    }
}

fn change_integers(integers: &mut Vec<i64>, choices: &mut Choices<'_>) {
    let at = choices.below(integers.len());
    match choices.below(5) {
        _ if integers.is_empty() => integers.push(choices.pick(&NUMBERS)),
        0 => drop(integers.remove(at)),
        1 => integers.push(integers[at]),
        2 => {
            let other = choices.below(integers.len());
            integers.swap(at, other);
        }
        3 => integers[at] = integers[at].wrapping_add(choices.pick(&[1, -1])),
        _ => integers[at] = choices.pick(&NUMBERS),
    }
}

fn change_tensor(tensor: &mut TensorProto, choices: &mut Choices<'_>) {
    match choices.below(6) {
        0 => change_integers(&mut tensor.dims, choices),
        1 => tensor.data_type = Some(choices.below(26) as i32),
        2 => tensor.name = Some(choices.pick(&NAMES).to_owned()),
        3 => {
            if let Some(raw) = &mut tensor.raw_data {
                *raw = raw.slice(..choices.below(raw.len()));
            }
        }
        4 => {
            let entry = any(&mut tensor.external_data, choices);
            if let Some(entry) = entry {
                let values = ["0", "-1", "1", "18446744073709551615", "../model.onnx", ""];
                entry.value = Some(choices.pick(&values).to_owned());
            }
        }
        // One of the integers that it holds.
        _ => {
            if let Some(raw) = &mut tensor.raw_data {
                let mut bytes = raw.to_vec();
                let at = choices.below(bytes.len() / 8);
                if let Some(number) = bytes.chunks_exact_mut(8).nth(at) {
                    number.copy_from_slice(&choices.pick(&NUMBERS).to_le_bytes());
                }
                *raw = bytes.into();
            }
        }
    }
}

fn change_info(info: &mut ValueInfoProto, choices: &mut Choices<'_>) {
    if choices.once_in(6) {
        info.name = Some(choices.pick(&NAMES).to_owned());
    }
    let Some(type_proto::Value::TensorType(tensor)) =
        info.r#type.as_mut().and_then(|t| t.value.as_mut())
    else {
        return;
    };
    let Some(shape) = &mut tensor.shape else {
        tensor.elem_type = Some(choices.below(26) as i32);
        return;
    };
    let dimension = |value| Dimension {
        denotation: None,
        value,
    };
    let at = choices.below(shape.dim.len());
    match choices.below(6) {
        0 => tensor.elem_type = Some(choices.below(26) as i32),
        1 => tensor.shape = None,
        2 => drop(shape.dim.pop()),
        3 => shape.dim.push(dimension(None)),
        _ if shape.dim.is_empty() => {}
        4 => shape.dim[at] = dimension(Some(dimension::Value::DimValue(choices.pick(&NUMBERS)))),
        _ => {
            let name = choices.pick(&["?", "f", "batch", "past", ""]).to_owned();
            shape.dim[at] = dimension(Some(dimension::Value::DimParam(name)));
        }
    }
}

/// Any value that a node of `nodes` reads or makes, or a name that none has.
fn name(nodes: &[NodeProto], choices: &mut Choices<'_>) -> String {
    let chosen = nodes.get(choices.below(nodes.len()));
    let Some(node) = chosen.filter(|_| !choices.once_in(12)) else {
        return choices.pick(&NAMES).to_owned();
    };
    let values: Vec<&String> = node.input.iter().chain(&node.output).collect();
    let value = values.get(choices.below(values.len()));
    value.map_or_else(String::new, |v| (*v).clone())
}

fn any<'v, T>(from: &'v mut [T], choices: &mut Choices<'_>) -> Option<&'v mut T> {
    from.get_mut(choices.below(from.len()))
}
