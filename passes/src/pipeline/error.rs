//! Why a model was not rewritten.

use std::collections::BTreeSet;
use std::error::Error;

use crate::analysis::AnalysisError;
use crate::forms::{Form, FormError, OLDEST_OPSET};
use crate::graph::patch::PatchError;
use crate::graph::verify::VerifyError;
use crate::recognize::reject::Reject;

/// Why a model was not rewritten; it is unchanged then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// The model could not be analysed.
    #[error("the model is not well-formed: {0}")]
    Malformed(AnalysisError),
    /// Opset too old.
    #[error(
        "the model uses opset {0}, the rewrite needs at least {OLDEST_OPSET}: export it with a newer opset, or convert it with onnx.version_converter"
    )]
    Opset(i64),
    /// No attention at all was recognised.
    #[error("nothing to rewrite: {}", misses(.0))]
    Nothing(Vec<Reject>),
    /// Only some attentions were recognised.
    #[error("{recognised} attentions recognised, {} not; pass --allow-partial to rewrite only those: {}", layers(.rejects), misses(.rejects))]
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
    /// No factors.
    #[error("layer {layer}: {cause}")]
    Factor {
        /// The layer.
        layer: usize,
        /// What went wrong.
        cause: Box<dyn Error + Send + Sync>,
    },
    /// The form needs more than the attention shows.
    #[error("layer {layer} cannot take the form {form}: {cause}")]
    Form {
        /// The layer.
        layer: usize,
        /// The form.
        form: String,
        /// What is missing, and the way out.
        cause: FormError,
    },
    /// A share of the cache that no rank gives.
    #[error("the cache ratio {0} is out of range: it is a share, above 0 and at most 1")]
    Ratio(f64),
    /// The new tensors could not be stored.
    #[error("the new weights could not be stored: {0}")]
    Store(Box<dyn Error + Send + Sync>),
    /// The rewrite contradicts itself; nothing was changed.
    #[error("internal error, the model is unchanged: {0}")]
    Patch(PatchError),
    /// The rewritten graph is broken; nothing was changed.
    #[error("internal error, the rewritten graph is not well-formed: {0}")]
    Broken(VerifyError),
}

impl RewriteError {
    /// The refusal of `form` for `layer`.
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

/// How many attentions `rejects` speak of: the branches of an `If` are one layer.
fn layers(rejects: &[Reject]) -> usize {
    let layers: BTreeSet<usize> = rejects.iter().map(|r| r.layer).collect();
    layers.len()
}
