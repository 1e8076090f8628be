//! Sizes with different names that must be equal because the graph could not run otherwise.
//!
//! 1. The inputs of `Concat` have equal sizes on all axes but the concatenated one.
//! 2. All KV caches have the same past length, since each step appends the same number of tokens to each.
//!
//! Each round of inference uses the equalities that earlier rounds have found.

use tract_data::prelude::{Symbol, TDim};

use crate::facts::shapes::axis;
use crate::facts::values::{FRESH, Facts};
use crate::graph::{Graph, int_attribute, is_op};
use crate::onnx::NodeProto;

/// Largest number of inference rounds over one graph; also the length of the longest chain of equalities that is
/// resolved.
pub const ROUNDS: usize = 4;

/// The equalities that one inference round finds.
#[derive(Debug, Default)]
pub struct Equalities {
    /// Each dimension name of the file with the size that it is equal to.
    pub found: Vec<(Symbol, TDim)>,
    past_length: Option<Symbol>,
}

impl Equalities {
    /// Records the equalities that `node` implies, if it is a `Concat` of two inputs.
    pub fn demanded_by(&mut self, facts: &Facts, graph: &Graph, node: &NodeProto) {
        if !is_op(node, "Concat") {
            return;
        }
        let [first, second] = node.input.as_slice() else {
            return;
        };
        let (Some(a), Some(b)) = (facts.shape(first), facts.shape(second)) else {
            return;
        };
        let rank = a.len();
        let Some(axis) = axis(int_attribute(node, "axis", 0), rank).filter(|_| rank == b.len())
        else {
            return;
        };
        for (position, (a, b)) in a.iter().zip(b).enumerate() {
            if position != axis && a != b {
                self.note(a, b);
            }
        }
        let grows = || {
            graph.input(graph.resolve(first)).is_some()
                && node.output.iter().any(|o| graph.is_output(o))
        };
        if let Some(TDim::Sym(length)) = a.get(axis)
            && grows()
        {
            match &self.past_length {
                None => self.past_length = Some(length.clone()),
                Some(known) if known != length => {
                    self.found.push((length.clone(), TDim::Sym(known.clone())));
                }
                Some(_) => {}
            }
        }
    }

    fn note(&mut self, a: &TDim, b: &TDim) {
        // Only names from the file can be unified; fresh symbols are generated anew in every round.
        let named = |dim: &TDim| match dim {
            TDim::Sym(symbol) if !symbol.to_string().starts_with(FRESH) => Some(symbol.clone()),
            _ => None,
        };
        for (one, other) in [(a, b), (b, a)] {
            if let Some(symbol) = named(one).filter(|s| !other.symbols().contains(s)) {
                self.found.push((symbol, other.clone()));
                return;
            }
        }
    }
}

impl Facts {
    /// The size that the dimension name `name` stands for, with known equalities applied.
    pub(super) fn symbol(&self, name: &str) -> TDim {
        let mut size = TDim::Sym(self.symbols.sym(name));
        for _ in 0..ROUNDS {
            let TDim::Sym(symbol) = &size else { break };
            match self.chain().find_map(|facts| facts.equal.get(symbol)) {
                Some(next) => size = next.clone(),
                None => break,
            }
        }
        size
    }
}
