//! Operators that move, cut, join or repeat channels: the columns that they make are columns of what they read.

use tract_data::prelude::TDim;

use crate::facts::shapes;
use crate::graph::{attribute, input_at, int_attribute};
use crate::onnx::NodeProto;
use crate::weights::columns::index::{flat, numbered, picked};
use crate::weights::columns::{Columns, Numbers};

impl Columns<'_> {
    pub(super) fn transposed(
        &mut self,
        node: &NodeProto,
        first: &str,
        axes: &[usize],
        sizes: &[usize],
    ) -> Option<Numbers> {
        let rank = self.facts.shape(first)?.len();
        let all: Vec<usize> = (0..rank).collect();
        let perm = attribute(node, "perm").map_or(&[][..], |a| &a.ints);
        let perm = shapes::transpose(&all, perm)?;
        // The axes that are not indexed have to keep their order.
        let others = perm.iter().enumerate().filter(|(to, _)| !axes.contains(to));
        let others: Vec<usize> = others.map(|(_, from)| *from).collect();
        if !others.is_sorted() {
            return None;
        }
        let from: Vec<usize> = axes
            .iter()
            .map(|a| perm.get(*a).copied())
            .collect::<Option<_>>()?;
        let mut sorted = from.clone();
        sorted.sort_unstable();
        let numbers = self.of(first, &sorted)?;
        let before = self.sizes(first, &sorted)?;
        picked(sizes, &numbers, |index| {
            let mut places = sorted.iter().zip(&before);
            places.try_fold(0, |at, (axis, size)| {
                let place = from.iter().position(|f| f == axis)?;
                Some(at * size + index.get(place)?)
            })
        })
    }

    /// The place among `axes` of the axis that `node` works along; `None` where it is not one of them.
    fn along(&self, node: &NodeProto, first: &str, axes: &[usize]) -> Option<usize> {
        let rank = self.facts.shape(first)?.len();
        let axis = shapes::axis(int_attribute(node, "axis", 0), rank)?;
        axes.iter().position(|a| *a == axis)
    }

    pub(super) fn joined(
        &mut self,
        node: &NodeProto,
        axes: &[usize],
        sizes: &[usize],
    ) -> Option<Numbers> {
        let place = self.along(node, input_at(node, 0)?, axes)?;
        let mut parts = Vec::new();
        for input in &node.input {
            let part = self.sizes(input, axes)?;
            parts.push((self.of(input, axes)?, part));
        }
        numbered(sizes, |index| {
            let mut at = *index.get(place)?;
            for (numbers, part) in &parts {
                let length = *part.get(place)?;
                if at < length {
                    let mut inside = index.to_vec();
                    *inside.get_mut(place)? = at;
                    return numbers.get(flat(&inside, part)).copied();
                }
                at -= length;
            }
            None
        })
    }

    /// The columns of `first` from index `start` of axis `place` on.
    fn from(
        &mut self,
        first: &str,
        axes: &[usize],
        sizes: &[usize],
        of: impl Fn(&[usize]) -> Option<Vec<usize>>,
    ) -> Option<Numbers> {
        let numbers = self.of(first, axes)?;
        let before = self.sizes(first, axes)?;
        picked(sizes, &numbers, |index| {
            let index = of(index)?;
            let fits = index.iter().zip(&before).all(|(i, size)| i < size);
            fits.then(|| flat(&index, &before))
        })
    }

    pub(super) fn split(
        &mut self,
        node: &NodeProto,
        value: &str,
        first: &str,
        axes: &[usize],
        sizes: &[usize],
    ) -> Option<Numbers> {
        let place = self.along(node, first, axes)?;
        let before = node.output.iter().take_while(|o| *o != value);
        let lengths = before.map(|o| self.sizes(o, axes)?.get(place).copied());
        let start = lengths.sum::<Option<usize>>()?;
        self.from(first, axes, sizes, |index| shifted(index, place, start))
    }

    pub(super) fn cut(
        &mut self,
        node: &NodeProto,
        value: &str,
        first: &str,
        axes: &[usize],
        sizes: &[usize],
    ) -> Option<Numbers> {
        let (from, to) = (self.facts.shape(first)?, self.facts.shape(value)?);
        let constants = |at: usize| self.facts.integers(input_at(node, at)?);
        let starts = constants(1)?;
        let cut: Vec<i64> = match input_at(node, 3) {
            Some(_) => constants(3)?,
            None => (0..starts.len() as i64).collect(),
        };
        if input_at(node, 4).is_some() && constants(4)?.iter().any(|step| *step != 1) {
            return None;
        }
        let mut offsets = vec![0; axes.len()];
        for (axis, start) in cut.iter().zip(&starts) {
            let axis = shapes::axis(*axis, from.len())?;
            match axes.iter().position(|a| *a == axis) {
                Some(place) => {
                    let start = shapes::bound(from.get(axis)?, &TDim::Val(*start))?;
                    *offsets.get_mut(place)? = usize::try_from(start.as_i64()?).ok()?;
                }
                // Rows that are left out are other columns.
                None if from.get(axis) != to.get(axis) => return None,
                None => {}
            }
        }
        self.from(first, axes, sizes, |index| {
            Some(
                index
                    .iter()
                    .zip(&offsets)
                    .map(|(i, offset)| i + offset)
                    .collect(),
            )
        })
    }

    pub(super) fn gathered(
        &mut self,
        node: &NodeProto,
        first: &str,
        axes: &[usize],
        sizes: &[usize],
    ) -> Option<Numbers> {
        let place = self.along(node, first, axes)?;
        let indices = input_at(node, 1)?;
        // A vector keeps the number of axes.
        if self.facts.shape(indices)?.len() != 1 {
            return None;
        }
        let order = self.facts.integers(indices)?;
        let length = *self.sizes(first, axes)?.get(place)? as i64;
        self.from(first, axes, sizes, |index| {
            let mut index = index.to_vec();
            let slot = index.get_mut(place)?;
            let at = *order.get(*slot)?;
            *slot = usize::try_from(if at < 0 { at + length } else { at }).ok()?;
            Some(index)
        })
    }

    pub(super) fn tiled(
        &mut self,
        node: &NodeProto,
        first: &str,
        axes: &[usize],
        sizes: &[usize],
    ) -> Option<Numbers> {
        let repeats = self.facts.integers(input_at(node, 1)?)?;
        let others = repeats
            .iter()
            .enumerate()
            .filter(|(axis, _)| !axes.contains(axis));
        if others.into_iter().any(|(_, times)| *times != 1) {
            return None;
        }
        let before = self.sizes(first, axes)?;
        let inside = |index: &[usize]| {
            let inside = index.iter().zip(&before);
            inside.map(|(i, size)| i.checked_rem(*size)).collect()
        };
        self.from(first, axes, sizes, inside)
    }
}

fn shifted(index: &[usize], place: usize, start: usize) -> Option<Vec<usize>> {
    let mut index = index.to_vec();
    *index.get_mut(place)? += start;
    Some(index)
}

/// The axes of a tensor of shape `from` that a `Reshape` to the shape `to` makes its axes `axes` of. Row-major order stays,
/// so that columns do as well. `None` where an indexed axis is cut out of one that is not indexed, or joined with one.
pub(super) fn regrouped(from: &[TDim], to: &[TDim], axes: &[usize]) -> Option<Vec<usize>> {
    let mut kept = Vec::new();
    let (mut i, mut j) = (0, 0);
    let one = TDim::Val(1);
    while i < from.len() || j < to.len() {
        let (a, b) = (from.get(i), to.get(j));
        if a == b {
            kept.extend(axes.contains(&j).then_some(i));
            (i, j) = (i + 1, j + 1);
        } else if b == Some(&one) {
            j += 1;
        } else if a == Some(&one) {
            i += 1;
        } else {
            // Sizes that are grouped anew, until both sides hold as many elements.
            let (first, begin) = (i, j);
            let (mut before, mut after) = (a?.as_i64()?, b?.as_i64()?);
            (i, j) = (i + 1, j + 1);
            while before != after {
                if before < after {
                    before = before.checked_mul(from.get(i)?.as_i64()?)?;
                    i += 1;
                } else {
                    after = after.checked_mul(to.get(j)?.as_i64()?)?;
                    j += 1;
                }
            }
            let indexed = (begin..j).filter(|at| axes.contains(at)).count();
            // What is not indexed has to stay as it is: a column is a function of these axes.
            if indexed != j - begin {
                return None;
            }
            kept.extend(first..i);
        }
    }
    Some(kept)
}
