//! What can go wrong, with the node's name in every message.

use gqa2mla_passes::onnx::NodeProto;
use gqa2mla_passes::onnx::stored::TensorError;

/// Why one operator could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The tensor library refuses.
    #[error(transparent)]
    Tensor(candle_core::Error),
    /// An input or attribute that the operator is not defined for, or not implemented for here.
    #[error("{0}")]
    Invalid(String),
}

impl From<candle_core::Error> for OpError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(without_backtrace(error))
    }
}

impl From<candle_core::Error> for TrainError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(without_backtrace(error))
    }
}

/// The error itself: with `RUST_BACKTRACE` set, candle puts a backtrace into the text.
fn without_backtrace(error: candle_core::Error) -> candle_core::Error {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => without_backtrace(*inner),
        other => other,
    }
}

/// An [`OpError::Invalid`].
pub fn invalid<T>(detail: impl Into<String>) -> Result<T, OpError> {
    Err(OpError::Invalid(detail.into()))
}

/// Why a graph cannot be run or differentiated.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The graph needs an operator that is not in the table.
    #[error("node '{node}': operator {op} is not implemented for training")]
    Operator {
        /// The node.
        node: String,
        /// The operator, with its domain.
        op: String,
    },
    /// A trained tensor reaches the outputs through an operator without a gradient.
    #[error(
        "node '{node}': operator {op} stands between a trained tensor and the output, and has no gradient here"
    )]
    Gradient {
        /// The node.
        node: String,
        /// The operator, with its domain.
        op: String,
    },
    /// A node that failed.
    #[error("node '{node}' ({op}): {cause}")]
    Node {
        /// The node.
        node: String,
        /// The operator, with its domain.
        op: String,
        /// What is wrong.
        cause: OpError,
    },
    /// A value that nothing makes.
    #[error("value '{0}' is read, but no node, initializer or input makes it")]
    NoValue(String),
    /// An input that the caller left out.
    #[error("input '{0}' is not fed")]
    NoInput(String),
    /// A trained tensor that is no initializer of the graph, or that no output depends on.
    #[error(
        "'{0}' cannot be trained: no output of the graph depends on an initializer of this name"
    )]
    NoParameter(String),
    /// A stored tensor that cannot be read.
    #[error(transparent)]
    Stored(#[from] TensorError),
    /// A stored tensor of a type that has no place in a decoder.
    #[error("tensor '{name}': element type {data_type} is not implemented for training")]
    ElementType {
        /// The tensor.
        name: String,
        /// `TensorProto.DataType`.
        data_type: i32,
    },
    /// The tensor library refuses outside of any node.
    #[error(transparent)]
    Tensor(candle_core::Error),
    /// Logits, targets or teacher that do not fit together.
    #[error("{0}")]
    Loss(String),
}

/// The operator of `node` with its domain, as messages name it.
pub fn operator_name(node: &NodeProto) -> String {
    match node.domain() {
        "" | "ai.onnx" => node.op_type().to_owned(),
        domain => format!("{domain}.{}", node.op_type()),
    }
}
