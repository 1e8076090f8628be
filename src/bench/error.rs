//! Why models could not be measured.

use crate::bench::phase::Phase;
use crate::validate::ValidateError;

/// Why models could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A model that the runtime does not open, or whose interface is not that of a language model.
    #[error("{path}: {cause}")]
    Open {
        /// The model file.
        path: String,
        /// Why not.
        cause: Box<ValidateError>,
    },
    /// A decode step of a model without a cache.
    #[error(
        "{path} has no cache, so that it has no decode steps: measure --past none and a --prefill"
    )]
    NoCache {
        /// The model file.
        path: String,
    },
    /// A batch that a model does not take.
    #[error("{path} runs batches of {fixed} alone, not of {asked}: give --batch {fixed}")]
    Batch {
        /// The model file.
        path: String,
        /// The batch size that its inputs declare.
        fixed: usize,
        /// The batch size that was asked for.
        asked: usize,
    },
    /// A run that failed.
    #[error("{phase}: {cause}")]
    Run {
        /// What was run.
        phase: Phase,
        /// The runtime's error, which names the model.
        cause: Box<ValidateError>,
    },
    /// Lengths that no phase is made of.
    #[error("nothing to measure: give lengths with --past or --prefill")]
    Nothing,
}

impl BenchError {
    /// The error of a run in `phase`.
    pub(super) fn run<E: Into<ValidateError>>(phase: Phase) -> impl Fn(E) -> Self {
        move |cause| Self::Run {
            phase,
            cause: Box::new(cause.into()),
        }
    }

    /// The error of a model at `path` that cannot be opened.
    pub(super) fn open<E: Into<ValidateError>>(path: &std::path::Path) -> impl Fn(E) -> Self {
        let path = path.display().to_string();
        move |cause| Self::Open {
            path: path.clone(),
            cause: Box::new(cause.into()),
        }
    }
}
