//! Expansion of fused attention operators into primitives in all graphs of a model, and its reversal for operators
//! whose attention is not rewritten.

use std::collections::BTreeMap;

use crate::graph::Graph;
use crate::graph::patch::{Patch, PatchError, apply};
use crate::graph::scopes::Scope;
use crate::onnx::{GraphProto, NodeProto};
use crate::operators::Lowered;

/// A main graph after the expansion of its operators.
pub struct LoweredMain {
    /// The main graph.
    pub main: GraphProto,
    /// The result of the expansion of each graph, by the scope of the graph in the new main graph.
    pub lowered: BTreeMap<Scope, Lowered>,
    /// The operators before the expansion.
    pub operators: Vec<LoweredOperator>,
}

/// One operator that was expanded.
#[derive(Debug, Clone, PartialEq)]
pub struct LoweredOperator {
    /// The graph of the operator, as a scope of the new main graph.
    pub scope: Scope,
    /// The operator.
    pub node: NodeProto,
    /// The outputs of the nodes that replace it.
    pub made: Vec<String>,
}

/// Expands operators in `main` and its subgraphs, each graph as its entry in `lowered` says.
///
/// # Errors
/// [`PatchError`] if an expanded operator does not fit into its graph.
pub fn lower_operators(
    main: &GraphProto,
    mut lowered: BTreeMap<Scope, Lowered>,
) -> Result<LoweredMain, PatchError> {
    let mut originals: Vec<LoweredOperator> = Vec::new();
    for (scope, one) in &lowered {
        let graph = scope.get(main);
        for (id, nodes) in &one.patch.replaced {
            if let Some(node) = graph.and_then(|g| g.node.get(id.0)) {
                originals.push(LoweredOperator {
                    scope: scope.clone(),
                    node: node.clone(),
                    made: nodes.iter().flat_map(|n| n.output.clone()).collect(),
                });
            }
        }
    }
    let mut main = main.clone();
    let mut grown: BTreeMap<Scope, Vec<(usize, usize)>> = BTreeMap::new();
    // Subgraphs first: a patch of an enclosing graph changes the scopes of its subgraphs.
    for (scope, one) in lowered.iter_mut().rev() {
        let patch = std::mem::take(&mut one.patch);
        if patch.is_empty() {
            continue;
        }
        let counts = patch.replaced.iter().map(|(id, n)| (id.0, n.len()));
        grown.insert(scope.clone(), counts.collect());
        if let Some(graph) = scope.get_mut(&mut main) {
            apply(patch, graph)?;
        }
    }
    let moved = |scope: &Scope| moved(scope, &grown);
    for operator in &mut originals {
        operator.scope = moved(&operator.scope);
    }
    Ok(LoweredMain {
        main,
        lowered: lowered
            .into_iter()
            .map(|(scope, one)| (moved(&scope), one))
            .collect(),
        operators: originals,
    })
}

/// The new scope of the graph at `scope`, where node `n` of a graph has been replaced by `count` nodes for each `(n,
/// count)` in `grown`.
fn moved(scope: &Scope, grown: &BTreeMap<Scope, Vec<(usize, usize)>>) -> Scope {
    let mut before = Scope::default();
    let mut after = Scope::default();
    for step in &scope.0 {
        let more: usize = grown
            .get(&before)
            .into_iter()
            .flatten()
            .filter(|(node, _)| *node < step.node)
            .map(|(_, count)| count.saturating_sub(1))
            .sum();
        before.0.push(*step);
        let mut step = *step;
        step.node += more;
        after.0.push(step);
    }
    after
}

impl LoweredOperator {
    /// A patch that restores the operator in `graph`, its graph, in front of the nodes that replaced it. Those nodes
    /// lose their readers and become dead code, except nodes that other operators share.
    pub fn put_back(&self, graph: &Graph) -> Patch {
        let mut patch = Patch::default();
        for output in self.node.output.iter().filter(|o| !o.is_empty()) {
            if let Some((id, _)) = graph.producer(output) {
                patch.replaced.insert(id, Vec::new());
            }
        }
        let made = self.made.iter().filter_map(|value| graph.producer(value));
        if let Some((first, node)) = made.min_by_key(|(id, _)| *id) {
            // A node that makes an output of the operator is removed; other nodes may be shared with another operator.
            let kept = match patch.replaced.contains_key(&first) {
                true => None,
                false => Some(node.clone()),
            };
            let nodes = std::iter::once(self.node.clone()).chain(kept).collect();
            patch.replaced.insert(first, nodes);
        }
        patch
    }
}
