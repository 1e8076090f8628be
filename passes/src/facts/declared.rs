//! Types and shapes that the model file declares.

use std::collections::HashSet;

use tract_data::prelude::TDim;

use crate::facts::values::FRESH;
use crate::facts::{Fact, Facts, dim};
use crate::onnx::{
    GraphProto, TensorShapeProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto,
};

/// Dimension names by which exporters mark an unknown size.
const UNKNOWN: [&str; 6] = ["unknown", "unk", "dynamic", "none", "null", "nan"];

/// Largest declared size that is believed.
const LARGEST: i64 = 1 << 31;

/// Dimension names that occur twice in the shape of one input of `main`. Equal names then do not mean equal sizes.
pub fn unreliable(main: &GraphProto) -> HashSet<String> {
    let mut found = HashSet::new();
    for shape in main.input.iter().filter_map(shape_of) {
        let mut seen = HashSet::new();
        let names = shape.dim.iter().filter_map(|dim| match &dim.value {
            Some(dimension::Value::DimParam(name)) => Some(name.as_str()),
            _ => None,
        });
        found.extend(names.filter(|name| !seen.insert(*name)).map(str::to_owned));
    }
    found
}

fn shape_of(info: &ValueInfoProto) -> Option<&TensorShapeProto> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => tensor.shape.as_ref(),
        _ => None,
    }
}

/// The name of each axis that `info` declares, where it has one.
pub fn names(info: &ValueInfoProto) -> Vec<Option<&str>> {
    let dims = shape_of(info).into_iter().flat_map(|shape| &shape.dim);
    dims.map(|dim| match &dim.value {
        Some(dimension::Value::DimParam(name)) => Some(name.as_str()),
        _ => None,
    })
    .collect()
}

impl Facts {
    /// The fact that `info` declares. A size that is missing, negative or above [`LARGEST`] is unknown.
    pub(super) fn declared(&self, info: &ValueInfoProto) -> Fact {
        let Some(type_proto::Value::TensorType(tensor)) =
            info.r#type.as_ref().and_then(|t| t.value.as_ref())
        else {
            return Fact::default();
        };
        let shape = tensor.shape.as_ref().map(|shape| {
            let size = |dim: &Option<dimension::Value>| match dim {
                Some(dimension::Value::DimValue(n)) if (0..=LARGEST).contains(n) => TDim::Val(*n),
                Some(dimension::Value::DimParam(name)) => self.named(name),
                _ => self.fresh(),
            };
            shape.dim.iter().map(|dim| size(&dim.value)).collect()
        });
        Fact::new(tensor.elem_type, shape)
    }

    /// A size that the file declares: a name, or a sum such as `past + seq`.
    fn named(&self, text: &str) -> TDim {
        if self.promises_nothing(text) {
            return self.fresh();
        }
        let mut sum = TDim::Val(0);
        for part in text.split('+').map(str::trim) {
            let plain = |c: char| c.is_alphanumeric() || "_.:/".contains(c);
            if part.is_empty() || !part.chars().all(plain) {
                return self.symbol(text);
            }
            let term = match part.parse::<i64>() {
                Ok(number) => TDim::Val(number),
                Err(_) if self.promises_nothing(part) => return self.fresh(),
                Err(_) => self.symbol(part),
            };
            match dim::add(&sum, &term) {
                Some(next) => sum = next,
                None => return self.fresh(),
            }
        }
        sum
    }

    fn promises_nothing(&self, name: &str) -> bool {
        name.starts_with(FRESH)
            || !name.chars().any(char::is_alphanumeric)
            || UNKNOWN.iter().any(|word| name.eq_ignore_ascii_case(word))
            || self.chain().any(|facts| facts.unreliable.contains(name))
    }
}
