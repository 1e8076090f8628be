//! The operators that an analysis knows.

use crate::facts::Rules;
use crate::onnx::NodeProto;
use crate::operators::operator::Operator;
use crate::operators::{BUILT_IN, refused};

/// The operators that an analysis knows: those of this library, and a caller's own, which go first.
#[derive(Debug, Clone, Default)]
pub struct Operators {
    own: Vec<&'static Operator>,
}

impl Operators {
    /// These operators and `operator`. The last one of a name counts.
    #[must_use]
    pub fn with(mut self, operator: &'static Operator) -> Self {
        self.own.insert(0, operator);
        self
    }

    fn all(&self) -> impl Iterator<Item = &'static Operator> {
        self.own.iter().copied().chain(BUILT_IN.iter().copied())
    }

    /// The operator that `node` calls.
    pub fn find(&self, node: &NodeProto) -> Option<&'static Operator> {
        self.all().find(|operator| operator.is(node))
    }

    /// The rules of their outputs, for [`crate::facts`].
    pub fn rules(&self) -> Rules {
        self.all().map(Operator::rule).collect()
    }

    /// Whether `node` calls one of them, or an operator that is refused by name.
    pub fn is_attention(&self, node: &NodeProto) -> bool {
        self.find(node).is_some() || refused::reason(node).is_some()
    }

    /// Whether `node` computes positions from its mask, so that a batch has to be padded on the right.
    pub fn counts_positions(&self, node: &NodeProto) -> bool {
        self.find(node).is_some_and(Operator::counts_positions)
    }
}
