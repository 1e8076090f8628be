//! The operators of one graph, spelled out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::facts::Facts;
use crate::facts::typed::{Contradiction, TypedPatch};
use crate::graph::patch::Patch;
use crate::graph::{Graph, NodeId, label};
use crate::onnx::NodeProto;
use crate::operators::operator::{Target, unsupported};
use crate::operators::spell::Speller;
use crate::operators::table::Operators;
use crate::operators::{fused_product, refused, second_transpose};
use crate::recognize::reject::Reason;
use crate::recognize::site::Dialect;

/// One operator that was spelled out.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// Which operator it was.
    pub dialect: Dialect,
    /// Label of the operator.
    pub label: String,
    /// The operator itself, where the target `gqa` can put it back around a latent cache.
    pub grouped: Option<NodeProto>,
}

/// How the attention operators of one graph are spelled out.
#[derive(Debug, Clone, Default)]
pub struct Lowered {
    /// Each operator to the primitives it becomes.
    pub patch: Patch,
    /// By the output name of the score product: where it comes from.
    pub origins: HashMap<String, Origin>,
    /// By the first output name of an operator that stays: why.
    pub refused: BTreeMap<String, Reason>,
}

/// Puts what `speller` has made in place of the node `id`; returns the values that later operators may share.
///
/// # Errors
/// What the operator reads does not go together, which its primitives show.
fn take(
    patch: &mut TypedPatch,
    id: NodeId,
    speller: Speller,
) -> Result<HashMap<String, String>, Contradiction> {
    let (nodes, initializers, keys) = speller.finish();
    for tensor in initializers {
        patch.initializer(tensor);
    }
    patch.place(id, nodes)?;
    Ok(keys)
}

/// Spells out every fused product of two computed values, every second transpose of a cache, and every node of `graph` that calls one of `operators`.
pub fn lower(graph: &Graph, facts: &Arc<Facts>, operators: &Operators, target: Target) -> Lowered {
    let mut lowered = Lowered::default();
    let mut patch = TypedPatch::new("spelled out", graph, facts);
    let mut shared = HashMap::new();
    for (id, node) in graph.nodes() {
        if let Some(second) = second_transpose::candidate(graph, facts, id, node) {
            let mut speller = Speller::new(graph, facts, node, &mut shared);
            if second.spell(&mut speller, node).is_some()
                && let Ok(made) = take(&mut patch, id, speller)
            {
                shared.extend(made);
            }
            continue;
        }
        if fused_product::is_candidate(graph, facts, node) {
            let mut speller = Speller::new(graph, facts, node, &mut shared);
            // A product of what does not go together stays as it is.
            if fused_product::spell(&mut speller, node).is_some()
                && let Ok(made) = take(&mut patch, id, speller)
            {
                shared.extend(made);
            }
            continue;
        }
        let mut refuse = |reason| {
            let output = node.output.first().cloned().unwrap_or_default();
            lowered.refused.insert(output, reason);
        };
        let Some(operator) = operators.find(node) else {
            if let Some(reason) = refused::reason(node) {
                refuse(reason);
            }
            continue;
        };
        let mut speller = Speller::new(graph, facts, node, &mut shared);
        let spelled = operator.spell(&mut speller, node, target);
        let taken = spelled.and_then(|spelled| {
            let made = take(&mut patch, id, speller);
            let made = made.map_err(|error| unsupported(node, &error.what.to_string()))?;
            Ok((spelled, made))
        });
        match taken {
            Ok((spelled, made)) => {
                let origin = Origin {
                    dialect: Dialect(operator.name()),
                    label: label(node).to_owned(),
                    grouped: spelled.grouped,
                };
                lowered.origins.insert(spelled.score, origin);
                shared.extend(made);
            }
            Err(reason) => refuse(reason),
        }
    }
    lowered.patch = patch.into_patch();
    lowered
}
