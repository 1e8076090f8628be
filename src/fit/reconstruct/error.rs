//! The error of a reconstruction.

use std::io;

use gqa2mla_passes::RewriteError;
use gqa2mla_passes::factor::SpectralError;

use crate::files::tensors::ArraysError;
use crate::fit::calibrate::CalibrateError;

/// Why there are no reconstructed factors.
#[derive(Debug, thiserror::Error)]
pub enum ReconstructError {
    /// The instrumented model could not be run.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// A file or folder cannot be read or written.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: String,
        /// The I/O error.
        cause: io::Error,
    },
    /// A file of finished factors cannot be read or written.
    #[error(transparent)]
    Arrays(#[from] ArraysError),
    /// The finished layers cannot be rewritten.
    #[error("rewriting the layers that are done: {0}")]
    Rewrite(#[from] Box<RewriteError>),
    /// An eigendecomposition failed.
    #[error("layer {layer}: {cause}")]
    Factor {
        /// The layer.
        layer: usize,
        /// Its error.
        cause: SpectralError,
    },
}
