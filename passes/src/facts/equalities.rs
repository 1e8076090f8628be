//! Sizes of different names that have to be equal, because the graph could not run otherwise.
//!
//! 1. `Concat` joins tensors that agree on every other axis.
//! 2. All caches grow by the same step from the same length: the lengths of all pasts are one size.
//!
//! Every round of inference takes in what the rounds before it have found.

use tract_data::prelude::{Symbol, TDim};

use crate::facts::shapes::axis;
use crate::facts::values::{FRESH, Facts};
use crate::graph::{Graph, int_attribute, is_op};
use crate::onnx::NodeProto;

/// Most rounds of inference over one graph; also the longest chain of equalities that is followed.
pub const ROUNDS: usize = 4;

/// The equalities that one round finds.
#[derive(Debug, Default)]
pub struct Equalities {
    /// Each name that a file gives, with the size it is equal to.
    pub found: Vec<(Symbol, TDim)>,
    past_length: Option<Symbol>,
}

impl Equalities {
    /// Notes what `node` demands, if it is a `Concat` of two.
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
        // Only names that the file gives can be unified; made-up sizes are new in every round.
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
    /// The size that the name `name` stands for.
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
