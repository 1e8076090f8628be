//! The error of a benchmark.

use crate::bench::phase::Phase;
use crate::validate::ValidateError;

/// Why models could not be benchmarked.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A model cannot be opened, or its interface is not that of a language model.
    #[error("{path}: {cause}")]
    Open {
        /// The model file.
        path: String,
        /// The reason.
        cause: Box<ValidateError>,
    },
    /// Decode steps were requested for a model without a cache.
    #[error(
        "{path} has no cache, so that it has no decode steps: measure --past none and a --prefill"
    )]
    NoCache {
        /// The model file.
        path: String,
    },
    /// A batch size was requested that the model does not accept.
    #[error("{path} runs batches of {fixed} alone, not of {asked}: give --batch {fixed}")]
    Batch {
        /// The model file.
        path: String,
        /// The batch size that the inputs declare.
        fixed: usize,
        /// The requested batch size.
        asked: usize,
    },
    /// A number of tokens was requested that the model does not accept.
    #[error(
        "{path} reads {fixed} tokens in every run, not {asked}: give {}",
        of_runs(*fixed)
    )]
    Length {
        /// The model file.
        path: String,
        /// The number of tokens that the inputs declare.
        fixed: usize,
        /// The requested number of tokens.
        asked: usize,
    },
    /// A run failed.
    #[error("{phase}: {cause}")]
    Run {
        /// The phase of the run.
        phase: Phase,
        /// The runtime's error, which names the model.
        cause: Box<ValidateError>,
    },
    /// Neither past lengths nor prefill lengths were requested.
    #[error("nothing to measure: give lengths with --past or --prefill")]
    Nothing,
}

/// The options of `bench` that measure runs of `fixed` tokens.
fn of_runs(fixed: usize) -> String {
    match fixed {
        1 => "--prefill none".to_owned(),
        _ => format!("--past none --prefill {fixed}"),
    }
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
