//! Why two models could not be compared.

use std::fmt;

use crate::runtime::RuntimeError;

/// One of the two compared models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The model before the rewrite.
    Original,
    /// The model after it.
    Rewritten,
}

impl fmt::Display for Which {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Original => "original",
            Self::Rewritten => "rewritten",
        })
    }
}

/// Why two models could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// The role of an input cannot be determined.
    #[error("input {name} is not understood: {reason}")]
    Input {
        /// The input.
        name: String,
        /// The reason.
        reason: String,
    },
    /// An input for which no value can be generated.
    #[error(
        "input {name} is not understood: {reason}; say what it is fed with --input {name}=VALUE or --input {name}=FILE.npy"
    )]
    Unfed {
        /// The input.
        name: String,
        /// Why its role is unknown.
        reason: String,
    },
    /// A size of the inputs is constant, and a text cannot be read in one run with an empty cache.
    #[error(
        "the file fixes {what}, and a text is read in one run without a past: rewrite the export before its sizes are fixed, and fix those of the result"
    )]
    Fixed {
        /// The constant size.
        what: String,
    },
    /// The interface is not that of a language model, or does not hold at run time.
    #[error("{0}")]
    Interface(String),
    /// The models' logits have different shapes.
    #[error(
        "{step}: the original's logits have shape {original:?}, the rewritten model's {rewritten:?}"
    )]
    Logits {
        /// The scenario and run.
        step: String,
        /// Shape of the original's logits.
        original: Vec<usize>,
        /// Shape of the rewritten model's.
        rewritten: Vec<usize>,
    },
    /// A model cannot be opened, or its inputs and outputs are not those of a language model.
    #[error("{path}: {cause}")]
    Open {
        /// Which model.
        which: Which,
        /// Its file.
        path: String,
        /// The error.
        cause: Box<ValidateError>,
    },
    /// A token id is out of range.
    #[error("token id {id} is out of range: the model knows ids 0 to {largest}")]
    Token {
        /// The id.
        id: i64,
        /// The largest id of the vocabulary.
        largest: usize,
    },
    /// A model failed to run.
    #[error("the {which} model failed in {step}: {cause}")]
    Model {
        /// Which model.
        which: Which,
        /// The scenario and run.
        step: String,
        /// Its error.
        cause: Box<ValidateError>,
    },
    /// The runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl ValidateError {
    /// Whether the rewritten model is the cause, not the original or the machine: the original runs, and the rewritten
    /// model does not, or returns logits of another shape. A model that tract cannot run is no cause.
    #[must_use]
    pub fn is_about_the_rewritten(&self) -> bool {
        match self {
            Self::Model { which, cause, .. } | Self::Open { which, cause, .. } => {
                *which == Which::Rewritten && !cause.is_a_limit_of_tract()
            }
            Self::Logits { .. } => true,
            _ => false,
        }
    }

    fn is_a_limit_of_tract(&self) -> bool {
        match self {
            Self::Model { cause, .. } | Self::Open { cause, .. } => cause.is_a_limit_of_tract(),
            Self::Runtime(RuntimeError::Tract { .. }) => true,
            _ => false,
        }
    }
}
