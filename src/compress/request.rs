//! What a caller asks for.

use gqa2mla_passes::factor::CacheBits;
use gqa2mla_passes::factor::reconstruct::Descent;
use gqa2mla_passes::operators::Target;
use gqa2mla_passes::{RankPlan, RewriteOptions};

use crate::compress::error::{FreeWidthsError, NoScales};
use crate::compress::search::Promise;
use crate::compress::widths::Widths;
use crate::fit::factors::Factorization;
use crate::fit::statistics::ModelStatistics;
use crate::measure::text::TextSource;
use crate::runtime::RuntimeOptions;
use crate::validate::proof::ProofOptions;

/// Queries that one step of the reconstruction looks at, and the rate it begins with: of those tried, the ones that
/// lower the error of a layer most in the same time (docs/trials.md).
const QUERIES: usize = 256;
const RATE: f64 = 1e-3;

/// A text to read, for fitting factors and for measuring what is lost.
#[derive(Debug, Clone)]
pub struct TextRequest {
    /// The text, or its token ids.
    pub source: TextSource,
    /// Read at most this many tokens for fitting.
    pub tokens: usize,
    /// Tokens of one sequence.
    pub length: usize,
}

/// How a model is to be compressed. The default is the exact rewrite, validated.
#[derive(Debug, Clone)]
pub struct Request<'f> {
    /// Ranks, form and what else the rewrite itself takes.
    pub options: RewriteOptions<'f>,
    /// Search for the smallest rank that keeps this promise on held-out text; the ranks of `options` are not read then.
    pub promise: Option<Promise>,
    /// How the widths of the layers go together.
    pub widths: Widths,
    /// Where the factors come from; `None` is [`Factorization::Calibrated`] where something is lost and statistics or a
    /// text are given, else [`Factorization::Weights`].
    pub factorization: Option<Factorization>,
    /// Make factors even of statistics of fewer tokens than [`crate::fit::reach::FEWEST`] for each direction.
    pub takes_few_tokens: bool,
    /// Statistics of the model; `None` makes them from the text where the factorization needs them.
    pub statistics: Option<ModelStatistics>,
    /// The text.
    pub text: Option<TextRequest>,
    /// Steps of local reconstruction in each layer; 0 leaves it out.
    pub reconstruction_steps: usize,
    /// Where the models run.
    pub runtime: RuntimeOptions,
    /// How the result is validated; `None` accepts it without running it.
    pub proof: Option<ProofOptions>,
    /// Whether to measure the errors of each layer in the running models.
    pub measure_layers: bool,
}

impl Default for Request<'_> {
    fn default() -> Self {
        Self {
            options: RewriteOptions::default(),
            promise: None,
            widths: Widths::Uniform,
            factorization: None,
            takes_few_tokens: false,
            statistics: None,
            text: None,
            reconstruction_steps: 300,
            runtime: RuntimeOptions {
                optimize: true,
                ..RuntimeOptions::default()
            },
            proof: Some(ProofOptions::default()),
            measure_layers: false,
        }
    }
}

impl Request<'_> {
    /// Whether nothing may be lost.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        let all_numbers = self.options.ranks == RankPlan::Full && self.promise.is_none();
        all_numbers && self.options.bits == CacheBits::Model
    }

    /// Where the factors come from.
    #[must_use]
    pub fn factorization(&self) -> Factorization {
        let has_data = self.statistics.is_some() || self.text.is_some();
        match self.factorization {
            Some(factorization) => factorization,
            None if has_data && !self.is_exact() => Factorization::Calibrated,
            None => Factorization::Weights,
        }
    }

    /// How to reconstruct for `positions` positions, if that is wanted: reconstruction starts from the calibrated factors.
    #[must_use]
    pub fn descent(&self, positions: usize) -> Option<Descent> {
        let starts = self.factorization() == Factorization::Calibrated;
        descent(self.reconstruction_steps, positions).filter(|_| starts)
    }

    /// Refuses a cache of integers without the text that tells their scales. It needs nothing of the model.
    ///
    /// # Errors
    /// [`NoScales`].
    pub fn check_bits(&self) -> Result<(), NoScales> {
        let has_data = self.statistics.is_some() || self.text.is_some();
        let reads = !matches!(
            self.factorization(),
            Factorization::Weights | Factorization::TransMla { .. }
        );
        match self.options.bits == CacheBits::Model || (has_data && reads) {
            true => Ok(()),
            false => Err(NoScales),
        }
    }

    /// Refuses free widths that cannot be had. It needs nothing of the model.
    ///
    /// # Errors
    /// [`FreeWidthsError`].
    pub fn check_widths(&self) -> Result<(), FreeWidthsError> {
        if self.widths == Widths::Uniform {
            return Ok(());
        }
        if self.options.ranks == RankPlan::Full || self.promise.is_some() {
            return Err(FreeWidthsError::NoBudget);
        }
        if self.widths == Widths::Free && self.options.form.target() == Target::Gqa {
            return Err(FreeWidthsError::OneWidth);
        }
        match self.factorization() {
            Factorization::TransMla { .. } => Err(FreeWidthsError::OwnLayout),
            _ => Ok(()),
        }
    }
}

/// A descent of `steps` steps over sequences at any of `positions` positions; `None` for 0 steps.
pub(crate) fn descent(steps: usize, positions: usize) -> Option<Descent> {
    (steps > 0).then_some(Descent {
        steps,
        queries: QUERIES,
        rate: RATE,
        positions,
    })
}
