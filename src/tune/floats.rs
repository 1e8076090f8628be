//! A model whose `GroupQueryAttention` caches integers, as a model that caches the same numbers in floating point, for
//! training: new keys and values are rounded in front of the operator, by standard operators through which gradients pass.

use std::collections::BTreeMap;

use gqa2mla_passes::facts::Facts;
use gqa2mla_passes::graph::build::{NewSize, NewType, floats, node, retyped, shared_constant};
use gqa2mla_passes::graph::{Graph, input_at, int_attribute, is_contrib, output_at};
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::onnx::{
    NodeProto, TensorProto, ValueInfoProto, tensor_proto::DataType, tensor_shape_proto::dimension,
};
use gqa2mla_passes::operators::Operators;

/// The inputs and outputs of one cached side: new rows, past, scales, and present.
struct Ports {
    rows: usize,
    past: usize,
    scales: usize,
    present: usize,
}

const SIDES: [Ports; 2] = [
    Ports {
        rows: 1,
        past: 3,
        scales: 12,
        present: 1,
    },
    Ports {
        rows: 2,
        past: 4,
        scales: 13,
        present: 2,
    },
];

/// Attributes of an operator with a cache of integers.
const OF_INTEGERS: [&str; 3] = ["kv_cache_bit_width", "k_quant_type", "v_quant_type"];

/// `model` with all caches of integers in floating point; `None` if it has none, or an operator rotates its keys before it
/// rounds them. The initializers have the same names.
#[must_use]
pub fn in_floats(model: &Model) -> Option<Model> {
    let main = model.proto.graph.as_ref()?;
    let rounding = |n: &&NodeProto| {
        is_contrib(n, "GroupQueryAttention") && int_attribute(n, "kv_cache_bit_width", 0) != 0
    };
    let mut nodes = main.node.iter().filter(rounding).peekable();
    nodes.peek()?;
    if nodes.any(|n| int_attribute(n, "do_rotary", 0) != 0) {
        return None;
    }
    let index = Graph::new(main);
    let facts = Facts::of_main(model, &index, Operators::default().rules());
    let mut graph = main.clone();
    let mut caches = BTreeMap::new();
    graph.node = Vec::with_capacity(main.node.len());
    for operator in &main.node {
        if !rounding(&operator) {
            graph.node.push(operator.clone());
            continue;
        }
        let elem_type = facts.elem_type(input_at(operator, 0)?)?;
        let (packed, least, most) = match int_attribute(operator, "kv_cache_bit_width", 0) {
            4 => (2, -8.0, 7.0),
            8 => (1, -128.0, 127.0),
            _ => return None,
        };
        let ends = [least, most].map(|end| {
            let (name, new) = shared_constant(&index, floats(&[], &[end]));
            let is_new =
                |new: &TensorProto| graph.initializer.iter().all(|t| t.name() != new.name());
            graph.initializer.extend(new.filter(is_new));
            name
        });
        graph.node.extend(rounded(operator, elem_type, &ends)?);
        for side in SIDES {
            let past = input_at(operator, side.past)?;
            let present = output_at(operator, side.present)?;
            caches.extend([past, present].map(|cache| (cache.to_owned(), (elem_type, packed))));
        }
    }
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(cache) = caches.get(info.name()) {
            *info = widened(info, *cache)?;
        }
    }
    let is_cache = |info: &ValueInfoProto| caches.contains_key(info.name());
    graph.value_info.retain(|info| !is_cache(info));
    let mut proto = model.proto.clone();
    proto.graph = Some(graph);
    Some(Model {
        proto,
        files: model.files.clone(),
    })
}

/// The element type of a cache in floating point, and the numbers that one of its integers holds.
type Cache = (i32, i64);

/// The nodes in place of `operator`, which computes in `elem_type`. Integers end at the constants `ends`.
fn rounded(operator: &NodeProto, elem_type: i32, ends: &[String; 2]) -> Option<Vec<NodeProto>> {
    let float = DataType::Float as i32;
    let output = output_at(operator, 0)?;
    let mut new = operator.clone();
    new.attribute.retain(|a| !OF_INTEGERS.contains(&a.name()));
    let mut nodes = Vec::new();
    for side in SIDES {
        let rows = input_at(operator, side.rows)?;
        let scales = input_at(operator, side.scales)?;
        let mut made = |op: &str, inputs: &[&str], to: Option<i32>| {
            let name = format!("{output}/in_floats/{}", nodes.len());
            let made = node(op, &name, inputs, &[&name]);
            nodes.push(match to {
                Some(to) => made.with_int("to", to.into()),
                None => made,
            });
            name
        };
        let exact = match elem_type == float {
            true => rows.to_owned(),
            false => made("Cast", &[rows], Some(float)),
        };
        let steps = made("Div", &[&exact, scales], None);
        let nearest = made("Round", &[&steps], None);
        let digit = made("Clip", &[&nearest, &ends[0], &ends[1]], None);
        let value = made("Mul", &[&digit, scales], None);
        let value = match elem_type == float {
            true => value,
            false => made("Cast", &[&value], Some(elem_type)),
        };
        *new.input.get_mut(side.rows)? = value;
        new.input.get_mut(side.scales)?.clear();
    }
    while new.input.last().is_some_and(String::is_empty) {
        new.input.pop();
    }
    nodes.push(new);
    Some(nodes)
}

/// `info` of a cache of integers, in floating point.
fn widened(info: &ValueInfoProto, (elem_type, packed): Cache) -> Option<ValueInfoProto> {
    let last = info.sizes()?.last()?;
    let Some(dimension::Value::DimValue(elements)) = last.value else {
        return None;
    };
    let width = NewSize::Fixed(packed * elements);
    let sizes = vec![NewSize::Keep, NewSize::Keep, NewSize::Keep, width];
    let elem_type = Some(elem_type);
    Some(retyped(info, &NewType { elem_type, sizes }))
}
