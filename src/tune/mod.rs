//! Training a model's factors on text: distillation from the original, or fine-tuning on the next token.

pub mod checkpoint;
pub mod course;
pub mod decoder;
pub mod exchange;
pub mod run;
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
    /// Its graph contradicts itself, or cannot be spelled out.
    #[error("{path}: {cause}")]
    Analysis {
        /// The model.
        path: String,
        /// What is wrong.
        cause: AnalysisError,
    },
    /// An input or output that a decoder does not have.
    #[error("{path}: {cause}")]
    Interface {
        /// The model.
        path: String,
        /// What is wrong.
        cause: ValidateError,
    },
    /// An operator that cannot be run or differentiated, or a weight that cannot be read.
    #[error("{path}: {cause}")]
    Program {
        /// The model.
        path: String,
        /// What is wrong.
        cause: TrainError,
    },
    /// Nothing to train.
    #[error("{path}: {detail}")]
    Nothing {
        /// The model.
        path: String,
        /// What was looked for, and what to do.
        detail: String,
    },
    /// Too little text to keep a part of it back.
    #[error(
        "the text has {found} tokens, and training needs at least {needed}: a part is held out to choose the best state"
    )]
    Text {
        /// Tokens found.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// The model's loss is no number before any training.
    #[error(
        "{path}: the loss on the held-out text is not finite before the first step: the model overflows on this text"
    )]
    NotFinite {
        /// The model.
        path: String,
    },
    /// A checkpoint that cannot be written.
    #[error("the checkpoint: {0}")]
    Checkpoint(#[from] ArraysError),
    /// A file of factors that cannot be written.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// A file of factors that cannot be read.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: String,
        /// The system's answer.
        cause: io::Error,
    },
    /// A file of factors that does not fit the model.
    #[error("{path}: {detail}")]
    Factors {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// A weight that cannot be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}
