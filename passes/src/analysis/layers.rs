//! Layer numbers of the attentions of all graphs of a model.

use std::collections::BTreeMap;

use crate::graph::scopes::Scope;

/// The layer numbers of the attentions of all graphs. The subgraphs of one node (the branches of an `If`) start from
/// the same number: the one that the enclosing graph has reached.
#[derive(Debug, Default)]
pub struct Layers {
    /// One past the last layer number of each graph and its subgraphs.
    end: BTreeMap<Scope, usize>,
    /// The first layer number in the subgraphs of each node.
    first: BTreeMap<(Scope, usize), usize>,
}

impl Layers {
    /// The first layer number in the graph at `scope`.
    pub fn first_of(&mut self, scope: &Scope) -> usize {
        let Some((around, step)) = scope.around() else {
            return 0;
        };
        let next = self.end.get(&around).copied().unwrap_or(0);
        *self.first.entry((around, step.node)).or_insert(next)
    }

    /// Notes that the attentions of the graph at `scope` end before the layer number `end`.
    pub fn count(&mut self, scope: &Scope, end: usize) {
        let mut holder = Some(scope.clone());
        while let Some(scope) = holder {
            holder = scope.around().map(|(around, _)| around);
            let known = self.end.entry(scope).or_insert(end);
            *known = end.max(*known);
        }
    }
}
