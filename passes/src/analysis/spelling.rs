//! Attention operators spelled out as primitives in every graph of a model, and put back where that was in vain.

use std::collections::BTreeMap;

use crate::graph::Graph;
use crate::graph::patch::{Patch, PatchError, apply};
use crate::graph::scopes::Scope;
use crate::onnx::{GraphProto, NodeProto};
use crate::operators::Lowered;

/// A main graph after its operators are spelled out.
pub struct SpelledOut {
    /// The main graph.
    pub main: GraphProto,
    /// What the spelling of each graph tells of it, under the graph's place in the new main graph.
    pub lowered: BTreeMap<Scope, Lowered>,
    /// The operators as they were.
    pub operators: Vec<SpelledOperator>,
}

/// One operator that was spelled out.
#[derive(Debug, Clone, PartialEq)]
pub struct SpelledOperator {
    /// The graph that it stood in, by its place after the spelling.
    pub scope: Scope,
    /// The operator.
    pub node: NodeProto,
    /// The outputs of the nodes that stand for it.
    pub made: Vec<String>,
}

/// Spells operators out in `main` and in the graphs inside it, each as `lowered` says.
///
/// # Errors
/// [`PatchError`] when a spelled-out operator does not fit into its graph.
pub fn spell_out(
    main: &GraphProto,
    mut lowered: BTreeMap<Scope, Lowered>,
) -> Result<SpelledOut, PatchError> {
    let mut originals: Vec<SpelledOperator> = Vec::new();
    for (scope, one) in &lowered {
        let graph = scope.get(main);
        for (id, nodes) in &one.patch.replaced {
            if let Some(node) = graph.and_then(|g| g.node.get(id.0)) {
                originals.push(SpelledOperator {
                    scope: scope.clone(),
                    node: node.clone(),
                    made: nodes.iter().flat_map(|n| n.output.clone()).collect(),
                });
            }
        }
    }
    let mut main = main.clone();
    let mut grown: BTreeMap<Scope, Vec<(usize, usize)>> = BTreeMap::new();
    // Inner graphs first: the places of inner graphs change with the nodes around them.
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
    Ok(SpelledOut {
        main,
        lowered: lowered
            .into_iter()
            .map(|(scope, one)| (moved(&scope), one))
            .collect(),
        operators: originals,
    })
}

/// The place of the graph at `scope` after every graph has grown: node `n` of a graph has become `count` nodes for each
/// `(n, count)` in `grown`.
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

impl SpelledOperator {
    /// The patch that puts the operator back into `graph`, the graph it was spelled out in: in front of the nodes that
    /// stand for it, of which those lose their readers that nothing else shares.
    pub fn put_back(&self, graph: &Graph) -> Patch {
        let mut patch = Patch::default();
        for output in self.node.output.iter().filter(|o| !o.is_empty()) {
            if let Some((id, _)) = graph.producer(output) {
                patch.replaced.insert(id, Vec::new());
            }
        }
        let made = self.made.iter().filter_map(|value| graph.producer(value));
        if let Some((first, node)) = made.min_by_key(|(id, _)| *id) {
            // A node that only makes the operator's output goes; any other may be shared with another operator.
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
