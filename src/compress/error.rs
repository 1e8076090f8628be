//! Why there is no rewritten model.

use gqa2mla_passes::analysis::identity::SiteId;

use crate::compress::convert::ConvertError;
use crate::files::load::LoadError;
use crate::files::staging::StagingError;
use crate::files::tensors::ArraysError;
use crate::fit::calibrate::CalibrateError;
use crate::fit::reach::FEWEST;
use crate::fit::reconstruct::error::ReconstructError;
use crate::measure::text::TextError;
use crate::validate::ValidateError;

/// Why there is no rewritten model. Nothing has been written then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// A file of the model was truncated or written to while it was read.
    #[error("{0}")]
    Input(std::io::Error),
    /// The rewrite.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The reconstruction.
    #[error(transparent)]
    Reconstruct(Box<ReconstructError>),
    /// Statistics that were made from another model.
    #[error(
        "the statistics belong to another model ({found}, this one is {expected}): make them with `gqa2mla calibrate` from this very file"
    )]
    OtherModel {
        /// The model of the statistics.
        found: String,
        /// The model.
        expected: String,
    },
    /// Statistics without an attention of the model.
    #[error(
        "the statistics have no entry for layer {layer} ('{id}'): make them again with this version"
    )]
    NoLayer {
        /// The layer.
        layer: usize,
        /// Its id.
        id: SiteId,
    },
    /// Observing the model.
    #[error("{path}: {cause}")]
    Calibrate {
        /// The model.
        path: String,
        /// Why it cannot be observed.
        cause: Box<CalibrateError>,
    },
    /// The rewritten model cannot be read again.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Factors, a search or a free layout need a text, and there is none.
    #[error("no text: one is needed to fit the factors and to measure what is lost")]
    NoText,
    /// The text is too short to fit on one part of it and to measure on another.
    #[error("the text is too short to measure on a part of it: give one of some hundred tokens")]
    ShortText,
    /// Statistics of so little text that factors would be made for this text alone.
    #[error(
        "the statistics hold {tokens_a_direction:.1} tokens for each direction of the cache, and at least {FEWEST} are needed: give more text"
    )]
    FewTokens {
        /// Tokens for each direction.
        tokens_a_direction: f64,
    },
    /// A promise for positions that the held-out text does not reach.
    #[error(
        "a promise for {asked} positions is measured on held-out text of that length, and a third of the text is {length} tokens: give more text, or promise for at most {length} positions"
    )]
    ShortPromise {
        /// Positions that were asked for.
        asked: usize,
        /// Tokens of the longest held-out sequence.
        length: usize,
    },
    /// A cache of integers without what their scales are made from.
    #[error(transparent)]
    NoScales(#[from] NoScales),
    /// Widths of their own for the layers do not go together with the rest of the request.
    #[error(transparent)]
    FreeWidths(#[from] FreeWidthsError),
    /// The models cannot be measured or validated, for reasons that are not the rewritten model's.
    #[error(transparent)]
    Measure(#[from] ValidateError),
    /// No folder for models that are measured and dropped.
    #[error(transparent)]
    Scratch(#[from] StagingError),
    /// The models do not run, so that nothing is proved.
    #[error("the rewrite cannot be validated because the models could not be run: {0}")]
    CannotRun(ValidateError),
}

/// A cache of integers was asked for, and no text tells their scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the scales of a cache of 8-bit integers come from a text: give statistics or a text, and factors that are made from them"
)]
pub struct NoScales;

/// Why layers cannot have widths of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FreeWidthsError {
    /// They divide the budget of a given size.
    #[error("free widths divide a budget: give a rank or a ratio of the cache")]
    NoBudget,
    /// `GroupQueryAttention` has one width for keys and values.
    #[error(
        "free widths differ between keys and values, and GroupQueryAttention has one width: use the target matmul"
    )]
    OneWidth,
    /// TransMLA's recipe has a layout of its own.
    #[error("free widths have no meaning for TransMLA's recipe, whose layout is its own")]
    OwnLayout,
}

impl From<ReconstructError> for CompressError {
    fn from(error: ReconstructError) -> Self {
        Self::Reconstruct(Box::new(error))
    }
}

impl From<ArraysError> for CompressError {
    fn from(error: ArraysError) -> Self {
        ReconstructError::from(error).into()
    }
}
