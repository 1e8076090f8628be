//! Why a reconstruction fails.

use std::io;

use gqa2mla_passes::RewriteError;
use gqa2mla_passes::factor::SpectralError;

use crate::files::tensors::ArraysError;
use crate::fit::calibrate::CalibrateError;

/// Why there are no reconstructed factors.
#[derive(Debug, thiserror::Error)]
pub enum ReconstructError {
    /// The model could not be watched.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// The system refuses.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: String,
        /// The system's answer.
        cause: io::Error,
    },
    /// A file of factors.
    #[error(transparent)]
    Arrays(#[from] ArraysError),
    /// The first layers cannot be rewritten by themselves.
    #[error("rewriting the layers that are done: {0}")]
    Rewrite(#[from] Box<RewriteError>),
    /// Linear algebra.
    #[error("layer {layer}: {cause}")]
    Factor {
        /// The layer.
        layer: usize,
        /// What went wrong.
        cause: SpectralError,
    },
}
