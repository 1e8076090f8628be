//! The guard of rows without a visible token, applied to the output of the value product in place of its operand.
//!
//! PyTorch replaces such rows of the probabilities, which are NaN, by zeros: `Where(IsNaN(p), 0, p)` reads and writes all
//! scores. A softmax makes the elements of a row NaN together, so that its first element tells, and the row of the output
//! is replaced instead: [B, H, T, dv] in place of [B, H, T, S]. The result differs only for such a row whose values are
//! not finite, where the original multiplies zero by infinity.

use crate::forms::builder::Builder;
use crate::graph::build::node;
use crate::graph::{NodeId, int_attribute, is_op};
use crate::recognize::digits::scalar;

/// The guard of an attention.
struct Guard<'g> {
    /// The `IsNaN` and the `Where`.
    nodes: [NodeId; 2],
    /// The zero.
    zero: &'g str,
    /// The probabilities before the guard.
    softmax: &'g str,
}

impl<'s> Builder<'s> {
    /// The guard of this attention, if nothing but its value product reads the guarded probabilities.
    fn guard(&self) -> Option<Guard<'s>> {
        let (graph, guarded) = (self.graph, self.site.probabilities.as_str());
        let is_only_read_once =
            |value: &str| graph.uses(value).len() == 1 && !graph.is_output(value);
        let (choice, chosen) = graph.producer(guarded)?;
        let [condition, zero, softmax] = chosen.input.as_slice() else {
            return None;
        };
        let (test, tested) = graph.producer(condition)?;
        let (_, made) = graph.producer(softmax)?;
        let is_guard = is_op(chosen, "Where")
            && is_op(tested, "IsNaN")
            && tested.input.first() == Some(softmax)
            && is_op(made, "Softmax")
            && matches!(int_attribute(made, "axis", -1), -1 | 3)
            && scalar(self.before, zero) == Some(0.0)
            && self.before.shape(zero).is_some_and(<[_]>::is_empty);
        (is_guard && is_only_read_once(guarded) && is_only_read_once(condition)).then_some(Guard {
            nodes: [test, choice],
            zero,
            softmax,
        })
    }

    /// The probabilities [B, H, T, S] without the guard of rows, if there is one: [`Self::guard_rows`] applies it.
    pub fn probabilities(&self) -> &'s str {
        self.guard()
            .map_or(self.site.probabilities.as_str(), |guard| guard.softmax)
    }

    /// The names of the value product and of its output, without the guard of rows.
    pub fn output_names(&self) -> (String, String) {
        match self.guard() {
            Some(_) => (self.name("unguarded"), self.name("unguarded")),
            None => self.names_of(self.site.output),
        }
    }

    /// Replaces the rows of the output whose probabilities are NaN by zeros, if the original does.
    pub fn guard_rows(&mut self) {
        let Some(guard) = self.guard() else {
            return;
        };
        let (start, end, axis) = (self.vector(&[0]), self.vector(&[1]), self.vector(&[3]));
        let (name, output) = self.names_of(self.site.output);
        let first = self.unary("Slice", "p_first", &[guard.softmax, &start, &end, &axis]);
        let empty = self.unary("IsNaN", "p_empty", &[&self.name("p_first")]);
        let inputs = [&self.name("p_empty"), guard.zero, &self.name("unguarded")];
        let chosen = node("Where", &name, &inputs, &[&output]);
        self.place(self.site.output, vec![first, empty, chosen]);
        for id in guard.nodes {
            self.place(id, Vec::new());
        }
    }
}
