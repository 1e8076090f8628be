//! The expansion of the fused operators of one graph.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::facts::Facts;
use crate::facts::typed::{Contradiction, TypedPatch};
use crate::graph::patch::Patch;
use crate::graph::{Graph, NodeId, label};
use crate::onnx::NodeProto;
use crate::operators::operator::{Target, unsupported};
use crate::operators::packed::{self, Packed};
use crate::operators::primitives::Primitives;
use crate::operators::second_transpose::{self, SecondTranspose};
use crate::operators::table::Operators;
use crate::operators::{fused_product, refused};
use crate::recognize::reject::Reason;
use crate::recognize::site::Dialect;

/// One operator that was expanded.
#[derive(Debug, Clone, PartialEq)]
pub struct OperatorOrigin {
    /// The operator, as a dialect.
    pub dialect: Dialect,
    /// Label of the operator's node.
    pub label: String,
    /// The operator's node, if the target `gqa` can restore it with a latent cache.
    pub grouped: Option<NodeProto>,
}

/// The expansion of the attention operators of one graph.
#[derive(Debug, Clone, Default)]
pub struct Lowered {
    /// Replaces each operator by its primitives.
    pub patch: Patch,
    /// The origin of each attention, by the output name of its score product.
    pub origins: HashMap<String, OperatorOrigin>,
    /// The reasons for operators that are not expanded, by their first output name.
    pub refused: BTreeMap<String, Reason>,
}

/// Replaces the node `id` by the nodes of `primitives`; returns the values that later operators may share.
///
/// # Errors
/// [`Contradiction`] if types or shapes of the operator's inputs do not fit its primitives.
fn take(
    patch: &mut TypedPatch,
    id: NodeId,
    primitives: Primitives,
) -> Result<HashMap<String, String>, Contradiction> {
    let (nodes, initializers, keys) = primitives.finish();
    for tensor in initializers {
        patch.initializer(tensor);
    }
    patch.place(id, nodes)?;
    Ok(keys)
}

/// A node around an attention that recognition follows in another spelling only.
enum Respelled<'g> {
    /// A second transpose of a cache.
    Transpose(SecondTranspose<'g>),
    /// A `FusedMatMul` of two computed values.
    Product,
    /// The write to a cache that has the heads on one axis.
    Packed(Packed),
}

impl<'g> Respelled<'g> {
    fn of(graph: &Graph<'g>, facts: &Facts, id: NodeId, node: &NodeProto) -> Option<Self> {
        let transpose = second_transpose::candidate(graph, facts, id, node).map(Self::Transpose);
        let product = || fused_product::is_candidate(graph, facts, node).then_some(Self::Product);
        let packed = || packed::candidate(graph, facts, node).map(Self::Packed);
        transpose.or_else(product).or_else(packed)
    }

    fn lower(&self, s: &mut Primitives, node: &NodeProto) -> Option<()> {
        match self {
            Self::Transpose(second) => second.lower(s, node),
            Self::Product => fused_product::lower(s, node),
            Self::Packed(packed) => packed.lower(s, node),
        }
    }
}

/// Expands the nodes of `graph` that are one of `operators`, and those that are [`Respelled`].
pub fn lower(graph: &Graph, facts: &Arc<Facts>, operators: &Operators, target: Target) -> Lowered {
    let mut lowered = Lowered::default();
    let mut patch = TypedPatch::new("lowered", graph, facts);
    let mut shared = HashMap::new();
    for (id, node) in graph.nodes() {
        if let Some(respelled) = Respelled::of(graph, facts, id, node) {
            let mut primitives = Primitives::new(graph, facts, node, &mut shared);
            // A product whose operands do not fit each other is not expanded.
            if respelled.lower(&mut primitives, node).is_some()
                && let Ok(made) = take(&mut patch, id, primitives)
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
        let mut primitives = Primitives::new(graph, facts, node, &mut shared);
        let attention = operator.lower(&mut primitives, node, target);
        let taken = attention.and_then(|attention| {
            let made = take(&mut patch, id, primitives);
            let made = made.map_err(|error| unsupported(node, &error.what.to_string()))?;
            Ok((attention, made))
        });
        match taken {
            Ok((attention, made)) => {
                let origin = OperatorOrigin {
                    dialect: Dialect(operator.name()),
                    label: label(node).to_owned(),
                    grouped: attention.grouped,
                };
                lowered.origins.insert(attention.score, origin);
                shared.extend(made);
            }
            Err(reason) => refuse(reason),
        }
    }
    lowered.patch = patch.into_patch();
    lowered
}
