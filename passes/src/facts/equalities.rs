//! Sizes with different names that must be equal because the graph could not run otherwise.
//!
//! 1. The inputs of `Concat` have equal sizes on all axes but the concatenated one. ONNX Runtime does not compare the sizes of
//!    an input without elements, such as a cache before the first step: of a cache this equates names, but it makes
//!    neither a number nor a nameless size of a size that the caller chooses with the tokens.
//! 2. All KV caches have the same past length, since each step appends the same number of tokens to each.
//!
//! Each round of inference uses the equalities that earlier rounds have found.

use std::collections::HashSet;

use tract_data::prelude::{Symbol, TDim};

use crate::facts::declared;
use crate::facts::shapes::axis;
use crate::facts::values::{Facts, is_named};
use crate::graph::{Graph, int_attribute, is_op};
use crate::onnx::NodeProto;

/// Largest number of inference rounds over one graph; also the length of the longest chain of equalities that is
/// resolved.
pub const ROUNDS: usize = 4;

/// Tokens, masks and positions have fewer axes than a cache.
const CACHE_AXES: usize = 3;

/// The equalities that one inference round finds.
#[derive(Debug)]
pub struct Equalities<'a> {
    /// Each dimension name of the file with the size that it is equal to.
    pub found: Vec<(Symbol, TDim)>,
    past_length: Option<Symbol>,
    /// Names of sizes that the caller chooses with the tokens.
    chosen: HashSet<&'a str>,
}

impl<'a> Equalities<'a> {
    /// No equality yet in `graph`.
    pub fn new(graph: &Graph<'a>) -> Self {
        let inputs = graph
            .reachable_inputs()
            .filter_map(|name| graph.input(name));
        let chosen = inputs
            .map(declared::names)
            .filter(|dims| dims.len() < CACHE_AXES)
            .flatten()
            .flatten();
        Self {
            found: Vec::new(),
            past_length: None,
            chosen: chosen.collect(),
        }
    }

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
        let may_be_empty = graph.input(graph.resolve(first)).is_some();
        for (position, (a, b)) in a.iter().zip(b).enumerate() {
            if position != axis && a != b {
                self.note(a, b, may_be_empty);
            }
        }
        let grows = || may_be_empty && node.output.iter().any(|o| graph.is_output(o));
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

    fn note(&mut self, a: &TDim, b: &TDim, may_be_empty: bool) {
        // Only names from the file can be unified; fresh symbols are generated anew in every round.
        let named = |dim: &TDim| match dim {
            TDim::Sym(symbol) if is_named(dim) => Some(symbol.clone()),
            _ => None,
        };
        for (one, other) in [(a, b), (b, a)] {
            if let Some(symbol) = named(one).filter(|s| !other.symbols().contains(s)) {
                // A number, or a size that only the graph knows.
                let fixed = matches!(other, TDim::Val(_)) || !is_named(other);
                if may_be_empty && fixed && self.chosen.contains(&*symbol.to_string()) {
                    return;
                }
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
