//! Which channels of a value are equal in every run.
//!
//! A value with some axes of constant size is a list of columns, one for each index of these axes; a column is what is left
//! of the value as a function of its other axes. Columns get a number each, walking back from the value, such that columns
//! of one number are equal whatever the model is fed:
//!
//! * an operator that moves, repeats or cuts channels passes numbers on;
//! * an element-wise operator gives one number to columns that it makes of the same columns;
//! * a product with a stored weight [E, n] makes column j of its input and of column j of the weight, which is remembered,
//!   since n columns that are made of E numbers each take no more than E directions;
//! * every other column is a number of its own.

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

/// What a column is made of. Columns that are made alike are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Column {
    /// Nothing is known but where it is: a value, the axes that are indexed, and the row-major index.
    Of(String, Vec<usize>, usize),
    /// Column `1` of what the `MatMul` `0` makes with a stored weight.
    Projected(NodeId, usize),
    /// What an element-wise node makes of columns with these numbers.
    Made(NodeId, Vec<usize>),
}

/// The numbers of the columns of a value, in row-major order of its indexed axes.
type Numbers = Vec<usize>;

/// Farthest walk back from the cached rows, in nodes: exporters put some 20 between a projection and the cache.
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

/// Numbers columns, walking back through one graph.
pub struct Columns<'g> {
    graph: &'g Graph<'g>,
    facts: &'g Facts,
    numbers: HashMap<Column, usize>,
    /// The column of each number.
    pub known: Vec<Column>,
    depth: usize,
}

impl<'g> Columns<'g> {
    /// No columns yet.
    pub fn new(graph: &'g Graph<'g>, facts: &'g Facts) -> Self {
        Self {
            graph,
            facts,
            numbers: HashMap::new(),
            known: Vec::new(),
            depth: 0,
        }
    }

    /// The numbers of the columns of `value` along `axes`, which rise. `None` where one of these axes has no constant size.
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

    /// `None` where nothing is known of the node that makes `value`.
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

    /// The columns of a node that only moves them.
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
        // One column that is repeated along different axes makes different ones.
        if (0..to.len()).all(same) {
            return Some(numbers);
        }
        let made = numbers
            .into_iter()
            .map(|n| self.number(Column::Made(id, vec![n])));
        Some(made.collect())
    }

    /// The columns of `value` as an operand of rank `rank` whose axes `axes` have `sizes` elements.
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
