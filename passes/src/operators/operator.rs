//! The definition of a fused attention operator.

use crate::facts::{OutputFacts, Rule};
use crate::graph::is_standard;
use crate::onnx::NodeProto;
use crate::operators::primitives::Primitives;
use crate::recognize::reject::Reason;

/// The operators that a rewritten attention consists of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Target {
    /// Standard operators: matrix products with heads as rows. The fastest on CPUs.
    #[default]
    MatMul,
    /// `com.microsoft.GroupQueryAttention` with one latent head, for models that use that operator. Past and present
    /// may share a buffer.
    Gqa,
}

/// Expands one node for a target, with [`Primitives`].
///
/// # Errors
/// A [`Reason`] if the node cannot be expanded: see [`unsupported`].
pub type Lower = fn(&mut Primitives, &NodeProto, Target) -> Result<LoweredNode, Reason>;

/// A fused attention operator: its name, the inference rule of its outputs, and its expansion.
#[derive(Debug, Clone, Copy)]
pub struct Operator {
    rule: Rule,
    lower: Lower,
    counts_positions: bool,
}

impl Operator {
    /// The operator `name` of `domain` (empty for the default domain). `outputs` infers types and shapes of its
    /// outputs, `lower` expands a node.
    pub const fn new(
        domain: &'static str,
        name: &'static str,
        outputs: OutputFacts,
        lower: Lower,
    ) -> Self {
        let rule = Rule {
            domain,
            name,
            outputs,
        };
        Self {
            rule,
            lower,
            counts_positions: false,
        }
    }

    /// Marks the operator as one that computes positions from its mask, so that batches must be padded on the right.
    #[must_use]
    pub const fn counting_positions(self) -> Self {
        Self {
            counts_positions: true,
            ..self
        }
    }

    /// The operator's name, which reports show as the dialect of its attentions.
    pub fn name(&self) -> &'static str {
        self.rule.name
    }

    /// The inference rule of its outputs.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Whether `node` is this operator.
    pub fn is(&self, node: &NodeProto) -> bool {
        let domain = if is_standard(node) { "" } else { node.domain() };
        node.op_type() == self.rule.name && domain == self.rule.domain
    }

    /// Whether the operator computes positions from its mask.
    pub fn counts_positions(&self) -> bool {
        self.counts_positions
    }

    /// Expands `node`; the new nodes and initializers are collected in `primitives`.
    ///
    /// # Errors
    /// A [`Reason`] if this node cannot be expanded.
    pub fn lower(
        &self,
        primitives: &mut Primitives,
        node: &NodeProto,
        target: Target,
    ) -> Result<LoweredNode, Reason> {
        (self.lower)(primitives, node, target)
    }
}

/// The result of the expansion of an operator.
#[derive(Debug, Clone)]
pub struct LoweredNode {
    /// Output name of the score product.
    pub(in crate::operators) score: String,
    /// The operator's node, if the target `gqa` can restore it.
    pub(in crate::operators) grouped: Option<NodeProto>,
}

impl LoweredNode {
    /// An attention whose score product has the output `score`, as [`Primitives::core`] returns it.
    pub fn new(score: String) -> Self {
        Self {
            score,
            grouped: None,
        }
    }
}

/// The reason to refuse `node`. `detail` says which feature has no expansion, and what the user can do.
pub fn unsupported(node: &NodeProto, detail: &str) -> Reason {
    let op = match node.domain() {
        "" | "ai.onnx" => node.op_type().to_owned(),
        domain => format!("{domain}.{}", node.op_type()),
    };
    Reason::UnsupportedOperator {
        op,
        detail: detail.to_owned(),
    }
}
