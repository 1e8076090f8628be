//! Symbolic tracking of layout operators: which element of a source tensor each element of a value is.
//!
//! The map of a value has one entry per axis: a list of digits, outermost first. The index along the axis is the
//! mixed-radix number of these digits. A digit either steps along an axis of the source with a stride, or repeats
//! elements. This covers all forms in which exporters write repeat_kv; layouts that it cannot express are refused.

use tract_data::prelude::TDim;

use crate::facts::dim::{self, SizeFactors};
use crate::facts::precision::holds;
use crate::facts::{Facts, shape_text as text, shapes};
use crate::graph::{attribute, int_attribute};
use crate::onnx::NodeProto;
use crate::recognize::reject::{Operand, Reason};

/// One digit of the mixed-radix index of an axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Digit {
    /// Number of values of the digit.
    pub extent: TDim,
    /// The source axis and the stride along it; `None` if the digit repeats elements.
    pub source: Option<(usize, i64)>,
}

/// The digits of one axis, outermost first; empty for an axis of size one.
pub type Axis = Vec<Digit>;

/// The map from a value to its source: the digits of each axis, and a constant factor.
#[derive(Debug, Clone, PartialEq)]
pub struct DigitMap {
    /// The digits of each axis.
    pub axes: Vec<Axis>,
    /// Product of all scalar factors between source and value.
    pub scale: f64,
    /// Whether a cast has rounded the value to a less precise type.
    narrowed: bool,
}

impl DigitMap {
    /// The map of the source itself.
    pub fn of_source(shape: &[TDim]) -> Self {
        let axes = shape
            .iter()
            .enumerate()
            .map(|(axis, size)| {
                let part = Digit {
                    extent: size.clone(),
                    source: Some((axis, 1)),
                };
                if *size == TDim::Val(1) {
                    Vec::new()
                } else {
                    vec![part]
                }
            })
            .collect();
        Self {
            axes,
            scale: 1.0,
            narrowed: false,
        }
    }

    /// Updates the map for the output of `node`, which reads the value at input `input`.
    pub fn step(
        &mut self,
        facts: &Facts,
        node: &NodeProto,
        input: usize,
        operand: Operand,
    ) -> Result<(), Reason> {
        let opaque = |detail: &str| Reason::Opaque {
            operand,
            op: node.op_type().to_owned(),
            detail: detail.to_owned(),
        };
        let output = node.output.first().and_then(|o| facts.shape(o));
        let second = || node.input.get(1).map(String::as_str).unwrap_or_default();
        match node.op_type() {
            "Identity" => {}
            "Cast" => self.cast(facts, node).ok_or_else(|| {
                opaque("it rounds to a narrower type and back, which a latent would not repeat")
            })?,
            "Mul" | "Div" => {
                let other = node
                    .input
                    .get(1 - input.min(1))
                    .map(String::as_str)
                    .unwrap_or_default();
                let factor = scalar(facts, other).ok_or_else(|| Reason::ScaleNotConstant {
                    operand,
                    scale: other.to_owned(),
                })?;
                self.scale *= if node.op_type() == "Mul" {
                    factor
                } else {
                    1.0 / factor
                };
                // A scalar of higher rank than the value adds leading axes of size one.
                let rank = output.map_or(self.axes.len(), <[TDim]>::len);
                while self.axes.len() < rank {
                    self.axes.insert(0, Vec::new());
                }
                if self.sizes().as_deref() != output {
                    return Err(opaque("its constant repeats the value along an axis"));
                }
            }
            "Transpose" => {
                let perm = attribute(node, "perm")
                    .map(|a| a.ints.clone())
                    .unwrap_or_default();
                self.axes = shapes::transpose(&self.axes, &perm)
                    .ok_or_else(|| opaque("its perm is no permutation"))?;
            }
            "Unsqueeze" => {
                let axes = crate::facts::axes(facts, node)
                    .ok_or_else(|| opaque("its axes are not constant"))?;
                let new = shapes::unsqueezed(&axes, self.axes.len())
                    .ok_or_else(|| opaque("its axes are out of range"))?;
                let mut old = std::mem::take(&mut self.axes).into_iter();
                self.axes = new
                    .iter()
                    .map(|&new| if new { Some(Vec::new()) } else { old.next() })
                    .collect::<Option<_>>()
                    .ok_or_else(|| opaque("its axes are out of range"))?;
            }
            "Squeeze" | "Reshape" | "Flatten" => {
                let shape = output.ok_or_else(|| opaque("its target shape cannot be told"))?;
                self.regroup(shape).ok_or_else(|| {
                    opaque(&format!(
                        "its target shape {} does not follow from its input",
                        text(shape)
                    ))
                })?;
            }
            "Expand" => {
                let target = facts
                    .ints(second())
                    .ok_or_else(|| opaque("its target shape cannot be told"))?;
                self.expand(target).ok_or_else(|| {
                    opaque(&format!(
                        "its target shape {} does not follow from its input",
                        text(target)
                    ))
                })?;
            }
            "Tile" => {
                let repeats = facts
                    .ints(second())
                    .ok_or_else(|| opaque("its repeats cannot be told"))?;
                if repeats.len() != self.axes.len() {
                    return Err(opaque("its repeats do not fit its input"));
                }
                for (axis, repeat) in self.axes.iter_mut().zip(repeats) {
                    repeat_outside(axis, repeat.clone());
                }
            }
            "Concat" => {
                let axis = shapes::axis(int_attribute(node, "axis", 0), self.axes.len())
                    .and_then(|axis| self.axes.get_mut(axis))
                    .ok_or_else(|| opaque("its axis is out of range"))?;
                repeat_outside(axis, TDim::from(node.input.len()));
            }
            "Gather" => self.gather(facts, node, operand)?,
            "Slice" => self.slice(facts, node, operand)?,
            _ => return Err(opaque("it is not a layout operator")),
        }
        self.axes.iter_mut().for_each(merge);
        Ok(())
    }

    /// Tracks rounding by casts. Once a value has been rounded, a cast to a type with values that its current type
    /// cannot represent is refused (`None`): a latent is rounded only once, to the type of the product.
    fn cast(&mut self, facts: &Facts, node: &NodeProto) -> Option<()> {
        let elem_type = |value: Option<&String>| facts.elem_type(value?);
        let (from, to) = (
            elem_type(node.input.first())?,
            elem_type(node.output.first())?,
        );
        if self.narrowed && !holds(from, to) {
            return None;
        }
        self.narrowed |= !holds(to, from);
        Some(())
    }

    /// Redistributes the digits of all axes in order, so that the axes have the sizes of `target`; splits digits if
    /// necessary.
    fn regroup(&mut self, target: &[TDim]) -> Option<()> {
        let mut parts: Vec<Digit> = std::mem::take(&mut self.axes)
            .into_iter()
            .flatten()
            .rev()
            .collect();
        let mut axes = Vec::with_capacity(target.len());
        for size in target {
            let mut rest = SizeFactors::of(size);
            let mut axis = Vec::new();
            while !rest.is_one() {
                let mut part = parts.pop()?;
                let factors = SizeFactors::of(&part.extent);
                if !rest.remove(&factors) {
                    // The digit is larger than the rest of the axis: split it. The outer part belongs to this axis, the
                    // inner part to the next.
                    let (all, outer) = (part.extent.as_i64()?, rest.product()?.as_i64()?);
                    if outer < 1 || all % outer != 0 {
                        return None;
                    }
                    let inner = all / outer;
                    parts.push(Digit {
                        extent: TDim::Val(inner),
                        source: part.source,
                    });
                    part = Digit {
                        extent: TDim::Val(outer),
                        source: part.source.map(|(axis, stride)| (axis, stride * inner)),
                    };
                    rest = SizeFactors::of(&TDim::Val(1));
                }
                axis.push(part);
            }
            axes.push(axis);
        }
        self.axes = axes;
        parts.is_empty().then_some(())
    }

    fn expand(&mut self, target: &[TDim]) -> Option<()> {
        while self.axes.len() < target.len() {
            self.axes.insert(0, Vec::new());
        }
        let offset = self.axes.len() - target.len();
        for (axis, size) in self.axes.iter_mut().skip(offset).zip(target) {
            let own = dim::product(axis.iter().map(|p| &p.extent))?;
            if *size == TDim::Val(1) || own == *size {
                continue;
            }
            // Only an axis of size one can be repeated; for other symbolic sizes, equality is not proved.
            if !axis.is_empty() {
                return None;
            }
            repeat_outside(axis, size.clone());
        }
        Some(())
    }

    fn gather(&mut self, facts: &Facts, node: &NodeProto, operand: Operand) -> Result<(), Reason> {
        let indices = node.input.get(1).map(String::as_str).unwrap_or_default();
        let opaque = |detail: &str| Reason::Opaque {
            operand,
            op: "Gather".to_owned(),
            detail: detail.to_owned(),
        };
        let order = facts
            .integers(indices)
            .ok_or_else(|| opaque("its indices are not constant"))?;
        if facts.shape(indices).map(<[TDim]>::len) != Some(1) {
            return Err(opaque("its indices are not a vector"));
        }
        let axis = shapes::axis(int_attribute(node, "axis", 0), self.axes.len())
            .and_then(|axis| self.axes.get_mut(axis))
            .ok_or_else(|| opaque("its axis is out of range"))?;
        let size = dim::product(axis.iter().map(|p| &p.extent))
            .and_then(|n| n.as_i64())
            .filter(|&n| n > 0)
            .ok_or_else(|| opaque("the length of its axis is not constant"))?;
        let count = order.len() as i64;
        let order: Vec<i64> = order
            .iter()
            .map(|&i| if i < 0 { i + size } else { i })
            .collect();
        let is = |expected: &dyn Fn(i64) -> i64| {
            (0..count).zip(&order).all(|(at, &i)| i == expected(at))
        };
        if count == 0 || count % size != 0 {
            return Err(Reason::PermutedHeads { operand, order });
        }
        let copies = count / size;
        if is(&|at| at / copies) {
            axis.push(Digit {
                extent: TDim::Val(copies),
                source: None,
            });
        } else if is(&|at| at % size) {
            repeat_outside(axis, TDim::Val(copies));
        } else {
            return Err(Reason::PermutedHeads { operand, order });
        }
        axis.retain(|part| part.extent != TDim::Val(1));
        Ok(())
    }

    fn slice(&self, facts: &Facts, node: &NodeProto, operand: Operand) -> Result<(), Reason> {
        let whole = node.output.first().and_then(|o| facts.shape(o));
        let from = node.input.first().and_then(|i| facts.shape(i));
        let opaque = |detail: &str| Reason::Opaque {
            operand,
            op: "Slice".to_owned(),
            detail: detail.to_owned(),
        };
        // A negative step returns equally many elements in another order.
        let steps = node.input.get(4).filter(|s| !s.is_empty());
        let forward = |s: &String| facts.integers(s).is_some_and(|s| s.iter().all(|&s| s == 1));
        if steps.is_some_and(|s| !forward(s)) {
            return Err(opaque("its steps are not constant ones"));
        }
        let (Some(whole), Some(from)) = (whole, from) else {
            return Err(opaque("its bounds cannot be told"));
        };
        // A slice with step 1 and the length of its input is the identity.
        match whole.iter().zip(from).position(|(a, b)| a != b) {
            Some(axis) => Err(Reason::PartialRead { operand, axis }),
            None => Ok(()),
        }
    }

    /// The size of each axis.
    pub fn sizes(&self) -> Option<Vec<TDim>> {
        self.axes
            .iter()
            .map(|axis| dim::product(axis.iter().map(|p| &p.extent)))
            .collect()
    }

    /// The map as text: `b` batch, `g` KV head, `t` position, `x` channel within a head, `3x` a repetition.
    pub fn describe(&self) -> String {
        let axes: Vec<String> = self
            .axes
            .iter()
            .map(|axis| {
                let parts: Vec<String> = axis
                    .iter()
                    .map(|part| match part.source {
                        None => format!("{}x", part.extent),
                        Some((axis, 1)) => ["b", "g", "t", "x"]
                            .get(axis)
                            .map_or_else(|| format!("axis{axis}"), |s| (*s).to_owned()),
                        Some((axis, stride)) => format!("axis{axis}/{stride}"),
                    })
                    .collect();
                match parts.as_slice() {
                    [] => "1".to_owned(),
                    parts => parts.join("*"),
                }
            })
            .collect();
        format!("[{}]", axes.join(", "))
    }
}

fn repeat_outside(axis: &mut Axis, extent: TDim) {
    if extent != TDim::Val(1) {
        axis.insert(
            0,
            Digit {
                extent,
                source: None,
            },
        );
    }
}

/// Merges neighbouring digits that are one contiguous digit of the same source axis, or both repetitions.
fn merge(axis: &mut Axis) {
    let mut merged: Axis = Vec::with_capacity(axis.len());
    for part in axis.drain(..) {
        if part.extent == TDim::Val(1) {
            continue;
        }
        if let Some(last) = merged.last_mut() {
            let joint = match (last.source, part.source, part.extent.as_i64()) {
                (None, None, _) => Some(None),
                (Some((a, outer)), Some((b, inner)), Some(extent))
                    if a == b && outer == inner * extent =>
                {
                    Some(Some((b, inner)))
                }
                _ => None,
            };
            if let (Some(source), Some(extent)) = (joint, dim::mul(&last.extent, &part.extent)) {
                last.extent = extent;
                last.source = source;
                continue;
            }
        }
        merged.push(part);
    }
    *axis = merged;
}

/// The number that all elements of the constant `value` are equal to; `None` if they differ or are unknown.
pub fn scalar(facts: &Facts, value: &str) -> Option<f64> {
    let (first, rest) = facts.floats(value)?.split_first()?;
    rest.iter().all(|v| v == first).then_some(*first)
}

#[cfg(test)]
mod tests;
