//! Operators that move, select, concatenate or repeat channels: the input column that each output column is equal to.

use tract_data::prelude::TDim;

use crate::facts::{Facts, shapes};
use crate::graph::{attribute, input_at, int_attribute};
use crate::onnx::NodeProto;
use crate::weights::columns::index::{each, flat};

/// The largest number of columns that is tracked. The keys of real models have up to some ten thousand channels; the
/// bound protects against sizes that a malicious graph declares.
const MOST_COLUMNS: usize = 1 << 20;

/// The input columns that the columns of a value are equal to.
pub(super) struct Moved<'n> {
    /// The inputs that are read, each with its indexed axes.
    pub inputs: Vec<(&'n str, Vec<usize>)>,
    /// For each column, the position of its input in `inputs`, and its row-major index there.
    pub columns: Vec<(usize, usize)>,
}

/// The input columns of `value`, the output of `node`, for the indexed `axes` with `sizes`; `None` if `node` does not
/// only rearrange its inputs.
pub(super) fn moved<'n>(
    facts: &Facts,
    node: &'n NodeProto,
    value: &str,
    axes: &[usize],
    sizes: &[usize],
) -> Option<Moved<'n>> {
    let output = Output {
        facts,
        node,
        first: input_at(node, 0)?,
        value,
        axes,
        sizes,
    };
    match node.op_type() {
        "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" => output.regrouped(),
        "Transpose" => output.transposed(),
        "Concat" => output.joined(),
        "Split" => output.split(),
        "Slice" => output.cut(),
        "Gather" => output.gathered(),
        "Tile" => output.tiled(),
        _ => None,
    }
}

/// The output of a node and its indexed axes.
struct Output<'n, 'o> {
    facts: &'o Facts,
    node: &'n NodeProto,
    /// The first input of the node.
    first: &'n str,
    value: &'o str,
    axes: &'o [usize],
    sizes: &'o [usize],
}

impl<'n> Output<'n, '_> {
    fn regrouped(&self) -> Option<Moved<'n>> {
        let (from, to) = (self.facts.shape(self.first)?, self.facts.shape(self.value)?);
        let count = self.sizes.iter().product();
        Some(Moved {
            inputs: vec![(self.first, regrouped(from, to, self.axes)?)],
            columns: (0..count).map(|at| (0, at)).collect(),
        })
    }

    fn transposed(&self) -> Option<Moved<'n>> {
        let rank = self.facts.shape(self.first)?.len();
        let all: Vec<usize> = (0..rank).collect();
        let perm = attribute(self.node, "perm").map_or(&[][..], |a| &a.ints);
        let perm = shapes::transpose(&all, perm)?;
        // The other axes must keep their order.
        let others = perm.iter().enumerate();
        let others = others.filter(|(to, _)| !self.axes.contains(to));
        let others: Vec<usize> = others.map(|(_, from)| *from).collect();
        if !others.is_sorted() {
            return None;
        }
        let from = self.axes.iter().map(|a| perm.get(*a).copied());
        let from: Vec<usize> = from.collect::<Option<_>>()?;
        let mut sorted = from.clone();
        sorted.sort_unstable();
        let before = sizes(self.facts, self.first, &sorted)?;
        let columns = each(self.sizes, |index| {
            let mut places = sorted.iter().zip(&before);
            let at = places.try_fold(0, |at, (axis, size)| {
                let place = from.iter().position(|f| f == axis)?;
                Some(at * size + index.get(place)?)
            })?;
            Some((0, at))
        })?;
        Some(Moved {
            inputs: vec![(self.first, sorted)],
            columns,
        })
    }

    /// The position, among the indexed axes, of the axis that the node works along; `None` if that axis is not indexed.
    fn along(&self) -> Option<usize> {
        let rank = self.facts.shape(self.first)?.len();
        let axis = shapes::axis(int_attribute(self.node, "axis", 0), rank)?;
        self.axes.iter().position(|a| *a == axis)
    }

    fn joined(&self) -> Option<Moved<'n>> {
        let place = self.along()?;
        let inputs = self.node.input.iter().map(String::as_str);
        let parts = inputs.clone();
        let parts = parts.map(|input| sizes(self.facts, input, self.axes));
        let parts: Vec<Vec<usize>> = parts.collect::<Option<_>>()?;
        let columns = each(self.sizes, |index| {
            let mut at = *index.get(place)?;
            for (input, part) in parts.iter().enumerate() {
                let length = *part.get(place)?;
                if at < length {
                    let mut inside = index.to_vec();
                    *inside.get_mut(place)? = at;
                    return Some((input, flat(&inside, part)));
                }
                at -= length;
            }
            None
        })?;
        Some(Moved {
            inputs: inputs.map(|input| (input, self.axes.to_vec())).collect(),
            columns,
        })
    }

    /// The columns of the first input at the indices that `of` returns.
    fn of_first(&self, of: impl Fn(&[usize]) -> Option<Vec<usize>>) -> Option<Moved<'n>> {
        let before = sizes(self.facts, self.first, self.axes)?;
        let columns = each(self.sizes, |index| {
            let index = of(index)?;
            let fits = index.iter().zip(&before).all(|(i, size)| i < size);
            fits.then(|| (0, flat(&index, &before)))
        })?;
        Some(Moved {
            inputs: vec![(self.first, self.axes.to_vec())],
            columns,
        })
    }

    fn split(&self) -> Option<Moved<'n>> {
        let place = self.along()?;
        let before = self.node.output.iter().take_while(|o| *o != self.value);
        let lengths = before.map(|o| sizes(self.facts, o, self.axes)?.get(place).copied());
        let start = lengths.sum::<Option<usize>>()?;
        self.of_first(|index| {
            let mut index = index.to_vec();
            *index.get_mut(place)? += start;
            Some(index)
        })
    }

    fn cut(&self) -> Option<Moved<'n>> {
        let (from, to) = (self.facts.shape(self.first)?, self.facts.shape(self.value)?);
        let constants = |at: usize| self.facts.integers(input_at(self.node, at)?);
        let starts = constants(1)?;
        let cut: Vec<i64> = match input_at(self.node, 3) {
            Some(_) => constants(3)?,
            None => (0..starts.len() as i64).collect(),
        };
        let has_steps = input_at(self.node, 4).is_some();
        if has_steps && constants(4)?.iter().any(|step| *step != 1) {
            return None;
        }
        let mut offsets = vec![0; self.axes.len()];
        for (axis, start) in cut.iter().zip(&starts) {
            let axis = shapes::axis(*axis, from.len())?;
            match self.axes.iter().position(|a| *a == axis) {
                Some(place) => {
                    let start = shapes::bound(from.get(axis)?, &TDim::Val(*start))?;
                    *offsets.get_mut(place)? = usize::try_from(start.as_i64()?).ok()?;
                }
                // A slice of an axis that is not indexed changes the columns.
                None if from.get(axis) != to.get(axis) => return None,
                None => {}
            }
        }
        self.of_first(|index| {
            let moved = index.iter().zip(&offsets);
            Some(moved.map(|(i, offset)| i + offset).collect())
        })
    }

    fn gathered(&self) -> Option<Moved<'n>> {
        let place = self.along()?;
        let indices = input_at(self.node, 1)?;
        // Indices of rank 1 keep the rank of the data.
        if self.facts.shape(indices)?.len() != 1 {
            return None;
        }
        let order = self.facts.integers(indices)?;
        let length = *sizes(self.facts, self.first, self.axes)?.get(place)? as i64;
        self.of_first(|index| {
            let mut index = index.to_vec();
            let slot = index.get_mut(place)?;
            let at = *order.get(*slot)?;
            *slot = usize::try_from(if at < 0 { at + length } else { at }).ok()?;
            Some(index)
        })
    }

    fn tiled(&self) -> Option<Moved<'n>> {
        let repeats = self.facts.integers(input_at(self.node, 1)?)?;
        let mut others = repeats.iter().enumerate();
        if others.any(|(axis, times)| !self.axes.contains(&axis) && *times != 1) {
            return None;
        }
        let before = sizes(self.facts, self.first, self.axes)?;
        self.of_first(|index| {
            let inside = index.iter().zip(&before);
            inside.map(|(i, size)| i.checked_rem(*size)).collect()
        })
    }
}

/// The sizes of `axes` of `value`; `None` if one is not constant, or if their product exceeds [`MOST_COLUMNS`].
pub(super) fn sizes(facts: &Facts, value: &str, axes: &[usize]) -> Option<Vec<usize>> {
    let shape = facts.shape(value)?;
    let size = |axis: &usize| usize::try_from(shape.get(*axis)?.as_i64()?).ok();
    let sizes: Option<Vec<usize>> = axes.iter().map(size).collect();
    let count = |sizes: &Vec<usize>| {
        sizes
            .iter()
            .try_fold(1usize, |n, size| n.checked_mul(*size))
    };
    sizes.filter(|sizes| count(sizes).is_some_and(|n| n <= MOST_COLUMNS))
}

/// The axes of the input shape `from` of a `Reshape` that become the indexed `axes` of the output shape `to`. `None` if
/// an indexed axis is merged with, or split from, one that is not indexed.
fn regrouped(from: &[TDim], to: &[TDim], axes: &[usize]) -> Option<Vec<usize>> {
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
            // Skip axes on both sides until their products are equal.
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
            // Axes that are not indexed must not change, because a column is a function of them.
            if indexed != j - begin {
                return None;
            }
            kept.extend(first..i);
        }
    }
    Some(kept)
}
