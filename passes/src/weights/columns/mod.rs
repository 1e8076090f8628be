//! Which channels of a value are equal in every run.
//!
//! Some axes of constant size of a value are indexed. Each index of these axes selects a column: the value as a
//! function of its other axes. Every column gets a number, found by a walk back from the value, such that columns with
//! the same number are equal in every run:
//!
//! * operators that move, repeat or select channels pass the numbers of their inputs on;
//! * an element-wise operator gives equal numbers to columns that it computes from columns with equal numbers;
//! * column j of a product with a stored weight [E, n] is recorded as such, because n columns computed from E inputs
//!   span at most E dimensions;
//! * every other column gets a number of its own.

mod index;
mod moved;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::HashMap;

use tract_data::prelude::TDim;

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, input_at, is_alias, is_standard};
use crate::onnx::NodeProto;
use index::each;
use moved::{moved, sizes};

/// How a column is computed. Columns that are computed in the same way are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Column {
    /// A column of which only its location is known: the value, its indexed axes, and the row-major index.
    Of(String, Vec<usize>, usize),
    /// Column `1` of the output of node `0`, a `MatMul` with a stored weight.
    Projected(NodeId, usize),
    /// The output column of an element-wise node, computed from the columns with these numbers.
    Made(NodeId, Vec<usize>),
}

/// The numbers of the columns of a value, in row-major order of its indexed axes.
type Numbers = Vec<usize>;

/// The longest walk back from the cached rows, in nodes; exporters write about 20 nodes between a projection and the
/// cache.
const FARTHEST: usize = 64;

/// Element-wise operators.
const ELEMENTWISE: [&str; 20] = [
    "Abs",
    "Add",
    "Cast",
    "Cos",
    "Div",
    "Erf",
    "Exp",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Pow",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Sin",
    "Sqrt",
    "Sub",
    "Tanh",
    "Where",
];

/// Assigns numbers to the columns of the values of one graph.
pub struct Columns<'g> {
    graph: &'g Graph<'g>,
    facts: &'g Facts,
    numbers: HashMap<Column, usize>,
    /// The column that each number stands for.
    pub known: Vec<Column>,
    depth: usize,
}

impl<'g> Columns<'g> {
    /// An empty numbering.
    pub fn new(graph: &'g Graph<'g>, facts: &'g Facts) -> Self {
        Self {
            graph,
            facts,
            numbers: HashMap::new(),
            known: Vec::new(),
            depth: 0,
        }
    }

    /// The numbers of the columns of `value` for the indexed `axes`, in ascending order. `None` if one of these axes
    /// has no constant size.
    pub fn of(&mut self, value: &str, axes: &[usize]) -> Option<Numbers> {
        let sizes = sizes(self.facts, value, axes)?;
        let count = sizes.iter().product::<usize>();
        self.depth += 1;
        let walked = (self.depth <= FARTHEST).then(|| self.walk(value, axes, &sizes));
        self.depth -= 1;
        if let Some(numbers) = walked.flatten().filter(|n| n.len() == count) {
            return Some(numbers);
        }
        let own = |index| Column::Of(value.to_owned(), axes.to_vec(), index);
        Some((0..count).map(|index| self.number(own(index))).collect())
    }

    fn number(&mut self, column: Column) -> usize {
        let next = self.known.len();
        let number = *self.numbers.entry(column.clone()).or_insert(next);
        if number == next {
            self.known.push(column);
        }
        number
    }

    /// The numbers of the columns of `value` by its producer; `None` if the operator is not known.
    fn walk(&mut self, value: &str, axes: &[usize], sizes: &[usize]) -> Option<Numbers> {
        let (id, node) = self.graph.producer(value).filter(|(_, n)| is_standard(n))?;
        let first = input_at(node, 0)?;
        match node.op_type() {
            _ if is_alias(node) => self.of(first, axes),
            op if ELEMENTWISE.contains(&op) => self.elementwise(id, node, value, axes),
            "Expand" => self.expanded(id, first, value, axes, sizes),
            "MatMul" => self.projected(id, node, value, axes),
            _ => self.moved(node, value, axes, sizes),
        }
    }

    /// The numbers of the columns of a node that only rearranges its inputs.
    fn moved(
        &mut self,
        node: &NodeProto,
        value: &str,
        axes: &[usize],
        sizes: &[usize],
    ) -> Option<Numbers> {
        let moved = moved(self.facts, node, value, axes, sizes)?;
        let inputs = moved.inputs.iter();
        let inputs = inputs.map(|(input, axes)| self.of(input, axes));
        let inputs: Vec<Numbers> = inputs.collect::<Option<_>>()?;
        let columns = moved.columns.into_iter();
        let columns = columns.map(|(input, at)| inputs.get(input)?.get(at).copied());
        columns.collect()
    }

    fn elementwise(
        &mut self,
        id: NodeId,
        node: &NodeProto,
        value: &str,
        axes: &[usize],
    ) -> Option<Numbers> {
        let rank = self.facts.shape(value)?.len();
        let sizes = sizes(self.facts, value, axes)?;
        let operands = node.input.iter();
        let operands = operands.map(|input| self.broadcast(input, rank, axes, &sizes));
        let operands: Vec<Numbers> = operands.collect::<Option<_>>()?;
        let count = sizes.iter().product();
        let made = (0..count).map(|i| {
            let of: Option<Vec<usize>> = operands.iter().map(|o| o.get(i).copied()).collect();
            Some(self.number(Column::Made(id, of?)))
        });
        made.collect()
    }

    fn expanded(
        &mut self,
        id: NodeId,
        first: &str,
        value: &str,
        axes: &[usize],
        sizes: &[usize],
    ) -> Option<Numbers> {
        let (from, to) = (self.facts.shape(first)?, self.facts.shape(value)?);
        let missing = to.len().checked_sub(from.len())?;
        let same = |axis: usize| {
            let before = axis.checked_sub(missing).and_then(|a| from.get(a));
            axes.contains(&axis)
                || before.unwrap_or(&TDim::Val(1)) == to.get(axis).unwrap_or(&TDim::Val(0))
        };
        let numbers = self.broadcast(first, to.len(), axes, sizes)?;
        // `Expand` on an axis that is not indexed changes a column, so that the result gets a new number.
        if (0..to.len()).all(same) {
            return Some(numbers);
        }
        let made = numbers
            .into_iter()
            .map(|n| self.number(Column::Made(id, vec![n])));
        Some(made.collect())
    }

    /// The numbers of the columns of `value` after broadcasting to rank `rank`, with `sizes` on the indexed `axes`.
    fn broadcast(
        &mut self,
        value: &str,
        rank: usize,
        axes: &[usize],
        sizes: &[usize],
    ) -> Option<Numbers> {
        let shape = self.facts.shape(value)?;
        let missing = rank.checked_sub(shape.len())?;
        let mut kept = Vec::new();
        let mut repeated = Vec::new();
        for (axis, size) in axes.iter().zip(sizes) {
            let own = axis.checked_sub(missing);
            let found = own.and_then(|a| shape.get(a));
            let is_one = found.is_none_or(|d| *d == TDim::Val(1));
            repeated.push(is_one && *size != 1);
            if let (Some(own), false) = (own, is_one && *size != 1) {
                let fits = found?.as_i64() == i64::try_from(*size).ok();
                kept.push(fits.then_some(own)?);
            }
        }
        let numbers = self.of(value, &kept)?;
        each(sizes, |index| {
            let kept = index.iter().zip(sizes).zip(&repeated);
            let kept = kept.filter(|(_, repeated)| !**repeated);
            let at = kept.fold(0, |at, ((i, size), _)| at * size + i);
            numbers.get(at).copied()
        })
    }

    fn projected(
        &mut self,
        id: NodeId,
        node: &NodeProto,
        value: &str,
        axes: &[usize],
    ) -> Option<Numbers> {
        let rank = self.facts.shape(value)?.len();
        let weight = self
            .graph
            .initializer(self.graph.resolve(input_at(node, 1)?))?;
        let is_stored = weight.dims.len() == 2 && !self.graph.is_reachable_input(weight.name());
        if axes != [rank.checked_sub(1)?] || !is_stored {
            return None;
        }
        let count = sizes(self.facts, value, axes)?.iter().product();
        Some(
            (0..count)
                .map(|j| self.number(Column::Projected(id, j)))
                .collect(),
        )
    }
}
