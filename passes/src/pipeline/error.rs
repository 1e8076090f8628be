//! Why a model was not rewritten.

use std::error::Error;

use crate::forms::grouped::RANK_STEP;
use crate::forms::{OLDEST_OPSET, TensorRange};
use crate::graph::patch::PatchError;
use crate::graph::verify::VerifyError;
use crate::recognize::reject::Reject;

/// Why a model was not rewritten; it is unchanged then.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// The graph was broken before.
    #[error("the model is not well-formed: {0}")]
    Malformed(VerifyError),
    /// Opset too old.
    #[error(
        "the model uses opset {0}, the rewrite needs at least {OLDEST_OPSET}: export it with a newer opset, or convert it with onnx.version_converter"
    )]
    Opset(i64),
    /// No attention at all was recognised.
    #[error("nothing to rewrite: {}", misses(.0))]
    Nothing(Vec<Reject>),
    /// Only some attentions were recognised.
    #[error("{recognised} attentions recognised, {} not; pass --allow-partial to rewrite only those: {}", .rejects.len(), misses(.rejects))]
    Partial {
        /// How many were.
        recognised: usize,
        /// Those that were not.
        rejects: Vec<Reject>,
    },
    /// Rank out of range.
    #[error(
        "rank {rank} is out of range for layer {layer}: its cached heads hold {full} numbers, so the rank is 1 to {full}"
    )]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// The layer it does not fit.
        layer: usize,
        /// Its full rank.
        full: usize,
    },
    /// The target keeps an operator that the model does not have.
    #[error(
        "layer {layer} is written as {dialect}, and the target gqa keeps GroupQueryAttention: use the target matmul"
    )]
    NotGrouped {
        /// The layer.
        layer: usize,
        /// How it is written.
        dialect: &'static str,
    },
    /// A rank that the operator cannot hold.
    #[error(
        "rank {rank} of layer {layer} is no multiple of {RANK_STEP}, as GroupQueryAttention needs: use another --rank or the target matmul"
    )]
    RankStep {
        /// The rank.
        rank: usize,
        /// The layer.
        layer: usize,
    },
    /// No factors.
    #[error("layer {layer}: {cause}")]
    Factor {
        /// The layer.
        layer: usize,
        /// What went wrong.
        cause: Box<dyn Error + Send + Sync>,
    },
    /// Ranks of keys and values differ where one operator caches both.
    #[error(
        "layer {layer}: GroupQueryAttention holds keys and values of one width, and the ranks are {key} and {value}: use the uniform layout or the target matmul"
    )]
    RanksDiffer {
        /// The layer.
        layer: usize,
        /// Rank of the keys.
        key: usize,
        /// Rank of the values.
        value: usize,
    },
    /// The form needs more than the attention shows.
    #[error("layer {layer} cannot take this form: {reason}; use the form absorbed")]
    Form {
        /// The layer.
        layer: usize,
        /// What is missing.
        reason: String,
    },
    /// A share of the cache that no rank gives.
    #[error("the cache ratio {0} is out of range: it is a share, above 0 and at most 1")]
    Ratio(f64),
    /// A factor out of the type's range.
    #[error(transparent)]
    Range(#[from] TensorRange),
    /// The new tensors could not be stored.
    #[error("the new weights could not be stored: {0}")]
    Store(Box<dyn Error + Send + Sync>),
    /// The rewrite contradicts itself; nothing was changed.
    #[error("internal error, the model is unchanged: {0}")]
    Patch(PatchError),
    /// The rewritten graph is broken; nothing was changed.
    #[error("internal error, the rewritten graph is not well-formed: {0}")]
    Broken(VerifyError),
    /// A value that stays has changed its type or shape.
    #[error("internal error, the rewrite changes the type or shape of '{0}'")]
    Seam(String),
}

fn misses(rejects: &[Reject]) -> String {
    match rejects {
        [] => "no attention was found".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first}; and {} more", rest.len()),
    }
}
