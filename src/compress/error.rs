//! The error of a compression.

use gqa2mla_passes::analysis::identity::SiteId;

use crate::compress::convert::ConvertError;
use crate::compress::way::Unmade;
use crate::files::load::{LoadError, LoadedModel};
use crate::files::staging::StagingError;
use crate::files::tensors::ArraysError;
use crate::fit::calibrate::CalibrateError;
use crate::fit::context::LongContext;
use crate::fit::reach::FewTokens;
use crate::fit::reconstruct::error::ReconstructError;
use crate::measure::text::TextError;
use crate::validate::ValidateError;

/// Why there is no rewritten model. Nothing is written to the output path then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// A file of the model was truncated or changed while it was read.
    #[error("{0}")]
    Input(std::io::Error),
    /// The rewrite failed.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The reconstruction failed.
    #[error(transparent)]
    Reconstruct(Box<ReconstructError>),
    /// The statistics are those of another model.
    #[error(
        "the statistics belong to another model ({found}, this one is {expected}): make them with `gqa2mla calibrate` from this very file"
    )]
    OtherModel {
        /// Identity of the model of the statistics.
        found: String,
        /// The model.
        expected: String,
    },
    /// The statistics lack an attention of the model.
    #[error(
        "the statistics have no entry for layer {layer} ('{id}'): make them again with this version"
    )]
    NoLayer {
        /// The layer.
        layer: usize,
        /// Its id.
        id: SiteId,
    },
    /// The calibration failed.
    #[error("{path}: {cause}")]
    Calibrate {
        /// The model.
        path: String,
        /// The error of the calibration.
        cause: Box<CalibrateError>,
    },
    /// The rewritten model cannot be trained.
    #[cfg(feature = "train")]
    #[error(transparent)]
    Distill(Box<crate::tune::TuneError>),
    /// The rewritten model cannot be read again.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The text could not be read.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Calibrated factors, a search or separate ranks need a text, and none is given.
    #[error("no text: one is needed to fit the factors and to measure what is lost")]
    NoText,
    /// The text is too short to be divided into a part for fitting and a part for measuring.
    #[error("the text is too short to measure on a part of it: give one of some hundred tokens")]
    ShortText,
    /// The statistics have so few tokens that factors would overfit them.
    #[error(transparent)]
    FewTokens(#[from] FewTokens),
    /// No method of a comparison is made with any of the requested numbers of bits.
    #[error("nothing can be compared: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NoWay(Vec<Unmade>),
    /// The promise covers positions that the held-out text does not reach.
    #[error(
        "a promise for {asked} positions is measured on held-out text of that length, and a third of the text is {length} tokens: give more text, or promise for at most {length} positions"
    )]
    ShortPromise {
        /// The requested number of positions.
        asked: usize,
        /// Tokens of the longest held-out sequence.
        length: usize,
    },
    /// The request is for more positions than the model has.
    #[error("{path}: {cause}")]
    LongContext {
        /// The model.
        path: String,
        /// The requested and the available number of positions.
        cause: LongContext,
    },
    /// An integer cache is requested, but there is no text for its scales.
    #[error(transparent)]
    NoScales(#[from] NoScales),
    /// Separate ranks for the layers do not fit the rest of the request.
    #[error(transparent)]
    FreeWidths(#[from] FreeWidthsError),
    /// The models cannot be measured or validated, and the rewritten model is not the cause.
    #[error(transparent)]
    Measure(#[from] ValidateError),
    /// The folder for temporary models could not be made.
    #[error(transparent)]
    Scratch(#[from] StagingError),
    /// The models cannot be run, so validation is impossible.
    #[error("the rewrite cannot be validated because the models could not be run: {0}")]
    CannotRun(ValidateError),
}

/// An integer cache is requested, but its scales cannot be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoScales {
    /// There are neither statistics nor a text.
    #[error("the scales of a cache of integers come from a text: give a text or statistics")]
    NoText,
    /// The factorization does not read the statistics of the text.
    #[error(
        "the scales of a cache of integers come from the statistics of a text, which the factors '{0}' do not read: use others"
    )]
    Unread(&'static str),
}

/// Why layers cannot have separate ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FreeWidthsError {
    /// There is no total cache size to be divided.
    #[error("free widths divide a budget: give a rank or a ratio of the cache")]
    NoBudget,
    /// The ranks are the result of a search.
    #[error(
        "free widths divide a budget, and a promise has none: give a rank or a ratio of the cache in its place"
    )]
    Promise,
    /// The KV heads are cached without a latent.
    #[error("heads that are kept have no ranks: use uniform widths")]
    Heads,
    /// `GroupQueryAttention` has one head size for keys and values.
    #[error(
        "free widths differ between keys and values, and GroupQueryAttention has one width: use uniform widths"
    )]
    OneWidth,
    /// TransMLA has its own cache layout.
    #[error("free widths have no meaning for TransMLA's recipe, whose layout is its own")]
    OwnLayout,
}

impl CompressError {
    /// The error that the requested context is too long for `model`.
    pub(crate) fn long(model: &LoadedModel) -> impl FnOnce(LongContext) -> Self {
        |cause| Self::LongContext {
            path: model.path.display().to_string(),
            cause,
        }
    }
}

impl From<ReconstructError> for CompressError {
    fn from(error: ReconstructError) -> Self {
        Self::Reconstruct(Box::new(error))
    }
}

#[cfg(feature = "train")]
impl From<crate::tune::TuneError> for CompressError {
    fn from(error: crate::tune::TuneError) -> Self {
        Self::Distill(Box::new(error))
    }
}

impl From<ArraysError> for CompressError {
    fn from(error: ArraysError) -> Self {
        ReconstructError::from(error).into()
    }
}
