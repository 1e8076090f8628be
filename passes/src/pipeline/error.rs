//! The error of a rewrite.

use std::collections::BTreeSet;
use std::error::Error;

use crate::analysis::AnalysisError;
use crate::facts::WrongDeclaration;
use crate::forms::{Form, FormError, OLDEST_OPSET};
use crate::graph::patch::PatchError;
use crate::graph::verify::VerifyError;
use crate::numbers::counted;
use crate::recognize::reject::Reject;

/// Why a model was not rewritten. The model is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// The model could not be analysed.
    #[error("the model is not well-formed: {0}")]
    Malformed(AnalysisError),
    /// The model's opset is too old.
    #[error(
        "the model uses opset {0}, the rewrite needs at least {OLDEST_OPSET}: export it with a newer opset, or convert it with onnx.version_converter"
    )]
    Opset(i64),
    /// No attention was recognised.
    #[error("nothing to rewrite: {}", misses(.0))]
    Nothing(Vec<Reject>),
    /// Only some attentions were recognised.
    #[error("{} recognised, {} not; pass --allow-partial to rewrite only those: {}", counted(*.recognised, "attention"), layers(.rejects), misses(.rejects))]
    Partial {
        /// Number of recognised attentions.
        recognised: usize,
        /// The other attentions, with reasons.
        rejects: Vec<Reject>,
    },
    /// A rank is out of range.
    #[error(
        "rank {rank} is out of range for layer {layer}: its cached heads hold {full} numbers, so the rank is 1 to {full}"
    )]
    Rank {
        /// The requested rank.
        rank: usize,
        /// The layer for which it is out of range.
        layer: usize,
        /// The full rank of the layer.
        full: usize,
    },
    /// The factors could not be computed.
    #[error("layer {layer}: {cause}")]
    Factor {
        /// The layer.
        layer: usize,
        /// The error of the factorization.
        cause: Box<dyn Error + Send + Sync>,
    },
    /// An attention cannot be rewritten to the form.
    #[error("layer {layer} cannot take the form {form}: {cause}")]
    Form {
        /// The layer.
        layer: usize,
        /// The form.
        form: String,
        /// The reason, and what the user can do.
        cause: FormError,
    },
    /// The cache ratio is not a share.
    #[error("the cache ratio {0} is out of range: it is a share, above 0 and at most 1")]
    Ratio(f64),
    /// The model declares a type or shape that its nodes contradict, so that the new nodes cannot be checked.
    #[error(
        "value '{}' is declared as {}, and its node gives {}: correct the declaration, or remove it", .0.value, .0.declared, .0.inferred
    )]
    Contradicted(WrongDeclaration),
    /// The new tensors could not be stored.
    #[error("the new weights could not be stored: {0}")]
    Store(Box<dyn Error + Send + Sync>),
    /// Internal error: a patch does not fit its graph.
    #[error("internal error, the model is unchanged: {0}")]
    Patch(PatchError),
    /// Internal error: the rewritten graph is malformed.
    #[error("internal error, the rewritten graph is not well-formed: {0}")]
    Broken(VerifyError),
}

impl RewriteError {
    /// The error that `layer` cannot be rewritten to `form`.
    pub fn form(layer: usize, form: &dyn Form, cause: FormError) -> Self {
        Self::Form {
            layer,
            form: form.name().to_owned(),
            cause,
        }
    }
}

impl From<AnalysisError> for RewriteError {
    fn from(cause: AnalysisError) -> Self {
        Self::Malformed(cause)
    }
}

fn misses(rejects: &[Reject]) -> String {
    match rejects {
        [] => "no attention was found".to_owned(),
        [only] => only.to_string(),
        [first, ..] => match layers(rejects) - 1 {
            0 => first.to_string(),
            more => format!("{first}; and {more} more"),
        },
    }
}

/// The number of layers of `rejects`; rejects in the branches of an `If` have the same layer.
fn layers(rejects: &[Reject]) -> usize {
    let layers: BTreeSet<usize> = rejects.iter().map(|r| r.layer).collect();
    layers.len()
}
