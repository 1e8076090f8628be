//! Training of a model's factors on text: distillation from the original, or fine-tuning on next tokens.

pub mod checkpoint;
pub mod course;
pub mod decoder;
pub mod exchange;
pub mod floats;
pub mod later_steps;
pub mod run;
pub mod samples;
pub mod select;
pub mod steps;

use std::io;

use gqa2mla_passes::analysis::AnalysisError;
use gqa2mla_passes::onnx::stored::TensorError;
use gqa2mla_train::error::TrainError;

use crate::files::staging::StagingError;
use crate::files::tensors::ArraysError;
use crate::validate::ValidateError;

/// Why a model cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// Its graph is malformed, or an operator cannot be expanded.
    #[error("{path}: {cause}")]
    Analysis {
        /// The model.
        path: String,
        /// What is wrong.
        cause: AnalysisError,
    },
    /// Its inputs and outputs are not those of a decoder.
    #[error("{path}: {cause}")]
    Interface {
        /// The model.
        path: String,
        /// What is wrong.
        cause: ValidateError,
    },
    /// An operator cannot be run or differentiated, or a weight cannot be read.
    #[error("{path}: {cause}")]
    Program {
        /// The model.
        path: String,
        /// What is wrong.
        cause: TrainError,
    },
    /// There are no tensors to train.
    #[error("{path}: {detail}")]
    Nothing {
        /// The model.
        path: String,
        /// The reason, and what to do.
        detail: String,
    },
    /// The branches of a merged decoder compute different things.
    #[error(
        "{path}: without a past, its branch with a past does not give the logits of the other one, as in decoders that are made for one token at a time: it cannot be trained; train a decoder that is not merged"
    )]
    Branches {
        /// The model.
        path: String,
    },
    /// The loss is not finite before training.
    #[error(
        "{path}: the loss on the held-out text is not finite before the first step: the model overflows on this text"
    )]
    NotFinite {
        /// The model.
        path: String,
    },
    /// A checkpoint cannot be written.
    #[error("the checkpoint: {0}")]
    Checkpoint(#[from] ArraysError),
    /// A file of factors cannot be written.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// A file of factors cannot be read.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: String,
        /// The I/O error.
        cause: io::Error,
    },
    /// A file of factors does not fit the model.
    #[error("{path}: {detail}")]
    Factors {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// A weight cannot be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}
