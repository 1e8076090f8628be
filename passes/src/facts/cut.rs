//! Shape inference and constant folding of operators that concatenate, slice, index and split.

use tract_data::prelude::TDim;

use crate::facts::content::{self, Content};
use crate::facts::shapes::axis;
use crate::facts::{Fact, Facts, Shape, dim, shapes};
use crate::graph::{attribute, input_at, int_attribute};
use crate::onnx::{NodeProto, tensor_proto::DataType};

/// `Concat`.
pub fn concat(facts: &Facts, node: &NodeProto, inputs: &[&Fact]) -> Option<Fact> {
    let known: Vec<&Shape> = inputs
        .iter()
        .map(|f| f.shape.as_ref())
        .collect::<Option<_>>()?;
    let rank = known.first()?.len();
    let at = axis(int_attribute(node, "axis", 0), rank)?;
    if known.iter().any(|s| s.len() != rank) {
        return None;
    }
    let mut shape = known.first()?.to_vec();
    let sum = known
        .iter()
        .try_fold(TDim::Val(0), |sum, s| dim::add(&sum, s.get(at)?));
    *shape.get_mut(at)? = sum.unwrap_or_else(|| facts.fresh());
    let mut content = Some(Vec::new());
    if rank == 1 {
        for input in inputs {
            match (&mut content, &input.content) {
                (Some(all), Some(Content::Ints(part))) if all.len() <= content::LONGEST => {
                    all.extend(part.iter().cloned());
                }
                _ => content = None,
            }
        }
    } else {
        content = None;
    }
    let elem_type = inputs.first()?.elem_type;
    Some(Fact::new(elem_type, Some(shape)).holding(content.map(Content::Ints)))
}

/// `Slice`.
pub fn slice(facts: &Facts, node: &NodeProto, input: &Fact) -> Option<Fact> {
    let mut shape = input.shape.clone()?;
    let part = |position: usize| {
        let name = input_at(node, position)?;
        facts.ints(name).map(<[TDim]>::to_vec)
    };
    let given = |position| input_at(node, position).is_some();
    let (starts, ends) = (part(1)?, part(2)?);
    let axes = match (given(3), part(3)) {
        (true, axes) => axes?,
        (false, _) => (0..starts.len()).map(TDim::from).collect(),
    };
    let steps = match (given(4), part(4)) {
        (true, steps) => steps?,
        (false, _) => vec![TDim::Val(1); starts.len()],
    };
    let mut picked = None;
    for (((start, end), at), step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let at = axis(at.as_i64()?, shape.len())?;
        let size = shape.get(at)?.clone();
        let length = match *step == TDim::Val(1) {
            true => shapes::slice_length(&size, start, end),
            false => shapes::strided_length(&size, start, end, step),
        };
        if let (1, TDim::Val(1), Some(length), Some(from)) =
            (shape.len(), step, &length, shapes::bound(&size, start))
            && let (Some(from), Some(length)) = (from.as_i64(), length.as_i64())
            && length <= content::LONGEST as i64
        {
            picked = Some((from as usize..(from + length) as usize).collect::<Vec<_>>());
        }
        *shape.get_mut(at)? = length.unwrap_or_else(|| facts.fresh());
    }
    let content = input.content.as_ref().zip(picked);
    let content = content.and_then(|(c, picked)| c.pick(&picked));
    Some(Fact::new(input.elem_type, Some(shape)).holding(content))
}

/// `Gather`.
pub fn gather(node: &NodeProto, inputs: &[&Fact]) -> Option<Fact> {
    let [data, indices] = inputs else { return None };
    let (sizes, index_shape) = (data.shape.as_ref()?, indices.shape.as_ref()?);
    let at = axis(int_attribute(node, "axis", 0), sizes.len())?;
    let mut shape = sizes.get(..at)?.to_vec();
    shape.extend(index_shape.iter().cloned());
    shape.extend(sizes.get(at + 1..)?.iter().cloned());
    let content = match (&data.content, &indices.content, sizes.as_slice()) {
        (Some(content), Some(Content::Ints(indices)), [size]) => {
            let size = size.as_i64()?;
            let picked: Option<Vec<usize>> = indices
                .iter()
                .map(|i| {
                    let i = i.as_i64()?;
                    usize::try_from(if i < 0 { i + size } else { i }).ok()
                })
                .collect();
            picked.and_then(|p| content.pick(&p))
        }
        _ => None,
    };
    Some(Fact::new(data.elem_type, Some(shape)).holding(content))
}

/// `NonZero`: the number of columns depends on the elements of the input, so it is a fresh symbol.
pub fn non_zero(facts: &Facts, input: &Fact) -> Fact {
    let rank = input.shape.as_ref().map(|shape| shape.len().max(1));
    let shape = rank.map(|rank| vec![TDim::from(rank), facts.fresh()]);
    Fact::new(Some(DataType::Int64 as i32), shape)
}

/// `GatherND`: the last axis of the indices has one index for each leading axis of the data; the other axes remain.
pub fn gather_nd(node: &NodeProto, inputs: &[&Fact]) -> Fact {
    let shape = || {
        let [data, indices] = inputs else { return None };
        let (rows, named) = match indices.shape.as_deref()? {
            [rows @ .., named] => (rows, usize::try_from(named.as_i64()?).ok()?),
            [] => return None,
        };
        let batch = usize::try_from(int_attribute(node, "batch_dims", 0)).ok()?;
        let chosen = data.shape.as_ref()?.get(batch.checked_add(named)?..)?;
        Some([rows, chosen].concat())
    };
    Fact::new(inputs.first().and_then(|f| f.elem_type), shape())
}

/// `Split`.
pub fn split(facts: &Facts, node: &NodeProto, input: &Fact) -> Option<Vec<Fact>> {
    let shape = input.shape.as_ref()?;
    let at = axis(int_attribute(node, "axis", 0), shape.len())?;
    let parts = match input_at(node, 1) {
        Some(sizes) => facts.ints(sizes)?.to_vec(),
        None => match attribute(node, "split") {
            Some(sizes) => sizes.ints.iter().map(|&n| TDim::Val(n)).collect(),
            None => {
                let (size, parts) = (shape.get(at)?.as_i64()?, node.output.len() as i64);
                if parts == 0 || size % parts != 0 {
                    return None;
                }
                vec![TDim::Val(size / parts); node.output.len()]
            }
        },
    };
    shapes::sizes(&parts)?
        .into_iter()
        .map(|part| {
            let mut shape = shape.clone();
            *shape.get_mut(at)? = part;
            Some(Fact::new(input.elem_type, Some(shape)))
        })
        .collect()
}
