//! The set of supported attention operators.

use crate::facts::Rules;
use crate::onnx::NodeProto;
use crate::operators::operator::Operator;
use crate::operators::rows::checks_row_lengths;
use crate::operators::{BUILT_IN, refused};

/// The set of supported attention operators: those of this library, and the caller's own, which take precedence.
#[derive(Debug, Clone, Default)]
pub struct Operators {
    own: Vec<&'static Operator>,
}

impl Operators {
    /// Adds `operator`. If several have the same name, the one added last is used.
    #[must_use]
    pub fn with(mut self, operator: &'static Operator) -> Self {
        self.own.insert(0, operator);
        self
    }

    fn all(&self) -> impl Iterator<Item = &'static Operator> {
        self.own.iter().copied().chain(BUILT_IN.iter().copied())
    }

    /// The operator of `node`, if it is in the set.
    pub fn find(&self, node: &NodeProto) -> Option<&'static Operator> {
        self.all().find(|operator| operator.is(node))
    }

    /// The inference rules of all operators, for [`crate::facts`].
    pub fn rules(&self) -> Rules {
        self.all().map(Operator::rule).collect()
    }

    /// Whether `node` is an attention operator: one of the set, or one that is known not to be supported.
    pub fn is_attention(&self, node: &NodeProto) -> bool {
        self.find(node).is_some() || refused::reason(node).is_some()
    }

    /// Whether `node` computes positions from its mask, so that batches must be padded on the right. This is also true
    /// of the check node that the expansion of such an operator adds.
    pub fn counts_positions(&self, node: &NodeProto) -> bool {
        self.find(node).is_some_and(Operator::counts_positions) || checks_row_lengths(node)
    }
}
