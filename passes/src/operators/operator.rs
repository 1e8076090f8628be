//! What an operator that is attention consists of.

use crate::facts::{OutputFacts, Rule};
use crate::graph::is_standard;
use crate::onnx::NodeProto;
use crate::operators::spell::Speller;
use crate::recognize::reject::Reason;

/// What a rewritten attention runs as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Target {
    /// Matrix products with heads as rows: fastest on CPUs, and made of standard operators.
    #[default]
    MatMul,
    /// `com.microsoft.GroupQueryAttention` with one latent head, for models that use that operator: past and present
    /// may share a buffer.
    Gqa,
}

/// Spells one node out, for one target.
///
/// # Errors
/// A [`Reason`] where that node has no spelled-out form: see [`unsupported`].
pub type Spell = fn(&mut Speller, &NodeProto, Target) -> Result<Spelled, Reason>;

/// An operator that is attention by itself: its name, the rule of its outputs, and how it is spelled out.
#[derive(Debug, Clone, Copy)]
pub struct Operator {
    rule: Rule,
    spell: Spell,
    counts_positions: bool,
}

impl Operator {
    /// The operator `name` of `domain` (empty for the standard one). `outputs` gives the types and shapes of its outputs.
    pub const fn new(
        domain: &'static str,
        name: &'static str,
        outputs: OutputFacts,
        spell: Spell,
    ) -> Self {
        let rule = Rule {
            domain,
            name,
            outputs,
        };
        Self {
            rule,
            spell,
            counts_positions: false,
        }
    }

    /// The same operator, which computes positions from its mask, so that a batch has to be padded on the right.
    #[must_use]
    pub const fn counting_positions(self) -> Self {
        Self {
            counts_positions: true,
            ..self
        }
    }

    /// The operator's name, which reports give as the dialect of its attentions.
    pub fn name(&self) -> &'static str {
        self.rule.name
    }

    /// The rule of its outputs.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Whether `node` calls this operator.
    pub fn is(&self, node: &NodeProto) -> bool {
        let domain = if is_standard(node) { "" } else { node.domain() };
        node.op_type() == self.rule.name && domain == self.rule.domain
    }

    /// Whether the operator computes positions from its mask.
    pub fn counts_positions(&self) -> bool {
        self.counts_positions
    }

    /// Spells `node` out, with the nodes and initializers in `speller`.
    ///
    /// # Errors
    /// A [`Reason`] where this node has no spelled-out form.
    pub fn spell(
        &self,
        speller: &mut Speller,
        node: &NodeProto,
        target: Target,
    ) -> Result<Spelled, Reason> {
        (self.spell)(speller, node, target)
    }
}

/// What an operator was spelled out as.
#[derive(Debug, Clone)]
pub struct Spelled {
    /// Output name of the score product.
    pub(in crate::operators) score: String,
    /// The operator, where the target `gqa` can put it back.
    pub(in crate::operators) grouped: Option<NodeProto>,
}

impl Spelled {
    /// An attention whose score product is the value `score`, as [`Speller::core`] returns it.
    pub fn new(score: String) -> Self {
        Self {
            score,
            grouped: None,
        }
    }
}

/// Refuses `node` because of `detail`: what it does that has no spelled-out form, and the way out.
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
