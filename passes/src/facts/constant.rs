//! Operators that generate values: `Constant`, `ConstantOfShape`, `Range`.

use tract_data::prelude::TDim;

use crate::facts::content::Content;
use crate::facts::{Fact, Facts, dim, shapes, stored};
use crate::graph::attribute;
use crate::onnx::stored::Model;
use crate::onnx::{NodeProto, tensor_proto::DataType};

/// `Constant`, whichever attribute holds its value.
pub fn constant(model: &Model, node: &NodeProto) -> Option<Fact> {
    let value = node.attribute.first()?;
    let ints = |values: &[i64], shape| {
        let values = values.iter().map(|&n| TDim::Val(n)).collect();
        Fact::new(Some(DataType::Int64 as i32), Some(shape)).holding(Some(Content::Ints(values)))
    };
    let floats = |values: &[f32], shape| {
        let values = values.iter().map(|&v| v.into()).collect();
        Fact::new(Some(DataType::Float as i32), Some(shape)).holding(Some(Content::Floats(values)))
    };
    match value.name() {
        "value" => value.t.as_ref().map(|t| stored::of_tensor(model, t)),
        "value_int" => Some(ints(&[value.i()], Vec::new())),
        "value_ints" => Some(ints(&value.ints, vec![TDim::from(value.ints.len())])),
        "value_float" => Some(floats(&[value.f()], Vec::new())),
        "value_floats" => Some(floats(&value.floats, vec![TDim::from(value.floats.len())])),
        _ => None,
    }
}

/// `ConstantOfShape`; without the attribute `value` it fills with the float 0.
pub fn constant_of_shape(facts: &Facts, model: &Model, node: &NodeProto) -> Fact {
    let sizes = node.input.first().and_then(|input| facts.ints(input));
    let shape = sizes.and_then(shapes::sizes);
    let (elem_type, value) = match attribute(node, "value").and_then(|a| a.t.as_ref()) {
        Some(tensor) => {
            let value = stored::of_tensor(model, tensor);
            (value.elem_type, value.content)
        }
        None => (
            Some(DataType::Float as i32),
            Some(Content::Floats(vec![0.0])),
        ),
    };
    let content = value.zip(shape.as_ref());
    let content = content.and_then(|(value, shape)| value.repeated(shape));
    Fact::new(elem_type, shape).holding(content)
}

/// `Range`; its length is inferred for a step of one.
pub fn range(facts: &Facts, inputs: &[&Fact]) -> Fact {
    let ends = inputs.iter().map(|f| match f.content.as_ref()? {
        Content::Ints(v) => v.first(),
        Content::Floats(_) => None,
    });
    let ends: Option<Vec<&TDim>> = ends.collect();
    let length = ends.and_then(|e| match e.as_slice() {
        [start, end, step] if **step == TDim::Val(1) => dim::sub(end, start),
        _ => None,
    });
    let length = length.and_then(|n| shapes::sizes(&[n]));
    Fact::new(
        inputs.first().and_then(|f| f.elem_type),
        Some(length.unwrap_or_else(|| vec![facts.fresh()])),
    )
}
