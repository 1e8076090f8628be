//! The errors of training, with node names.

use gqa2mla_passes::onnx::NodeProto;
use gqa2mla_passes::onnx::stored::TensorError;

/// Why one operator could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(candle_core::Error),
    /// The operator is not defined or not implemented for an input or attribute.
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

/// The error without its backtrace, which candle adds to the text if `RUST_BACKTRACE` is set.
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
    /// The graph contains an operator that is not implemented.
    #[error("node '{node}': operator {op} is not implemented for training")]
    Operator {
        /// The node.
        node: String,
        /// The operator, with its domain.
        op: String,
    },
    /// An operator between a trained tensor and an output has no gradient.
    #[error(
        "node '{node}': operator {op} stands between a trained tensor and the output, and has no gradient here"
    )]
    Gradient {
        /// The node.
        node: String,
        /// The operator, with its domain.
        op: String,
    },
    /// A node failed.
    #[error("node '{node}' ({op}): {cause}")]
    Node {
        /// The node.
        node: String,
        /// The operator, with its domain.
        op: String,
        /// What is wrong.
        cause: Box<OpError>,
    },
    /// A value has no definition.
    #[error("value '{0}' is read, but no node, initializer or input makes it")]
    NoValue(String),
    /// The caller has not given an input.
    #[error("input '{0}' is not fed")]
    NoInput(String),
    /// A tensor to be trained is not an initializer, or no output depends on it.
    #[error(
        "'{0}' cannot be trained: no output of the graph depends on an initializer of this name"
    )]
    NoParameter(String),
    /// A stored tensor cannot be read.
    #[error(transparent)]
    Stored(#[from] TensorError),
    /// A stored tensor has an unsupported type.
    #[error("tensor '{name}': element type {data_type} is not implemented for training")]
    ElementType {
        /// The tensor.
        name: String,
        /// `TensorProto.DataType`.
        data_type: i32,
    },
    /// The tensor library failed outside of a node.
    #[error(transparent)]
    Tensor(candle_core::Error),
    /// Logits, targets or teacher logits do not fit each other.
    #[error("{0}")]
    Loss(String),
}

/// The name of the operator of `node` with its domain, for messages.
pub fn operator_name(node: &NodeProto) -> String {
    match node.domain() {
        "" | "ai.onnx" => node.op_type().to_owned(),
        domain => format!("{domain}.{}", node.op_type()),
    }
}
