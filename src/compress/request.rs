//! The request of a compression.

use gqa2mla_passes::factor::CacheBits;
use gqa2mla_passes::factor::reconstruct::Descent;
use gqa2mla_passes::operators::Target;
use gqa2mla_passes::{Analysis, RankPlan, RewriteOptions};

use crate::compress::error::{CompressError, FreeWidthsError, NoScales};
use crate::compress::promise::Promise;
use crate::compress::widths::Widths;
use crate::files::load::LoadedModel;
use crate::fit::context::Context;
use crate::fit::factors::Factorization;
use crate::fit::reach::{Reach, check_text};
use crate::fit::statistics::ModelStatistics;
use crate::measure::text::{Text, TextSource};
use crate::runtime::RuntimeOptions;
use crate::validate::ports::LanguageModel;
use crate::validate::proof::ProofOptions;

/// Queries per step and initial learning rate of the reconstruction: among the tried values, those that reduce the
/// error of a layer most in the same time (docs/trials.md).
const QUERIES: usize = 256;
const RATE: f64 = 1e-3;

/// A text for fitting factors and for measuring the loss.
#[derive(Debug, Clone)]
pub struct TextRequest {
    /// Text or token ids.
    pub source: TextSource,
    /// Largest number of tokens for fitting.
    pub tokens: usize,
    /// Tokens of one sequence; `None`: 1,024, or the context of the model if that is shorter.
    pub length: Option<usize>,
}

impl TextRequest {
    /// Checks whether `fitted`, which was read of this text, has enough tokens for the attentions of `analysis`.
    ///
    /// # Errors
    /// [`CompressError::FewTokens`].
    pub(crate) fn check_reach(
        &self,
        fitted: &Text,
        (model, analysis): (&LoadedModel, &Analysis),
    ) -> Result<(), CompressError> {
        let length = Context::fitted(self.length, model).map_err(CompressError::long(model))?;
        Ok(check_text(fitted, (self.tokens, length), analysis)?)
    }

    /// Reads at most `tokens` tokens of the text for `model`.
    ///
    /// # Errors
    /// [`CompressError`] if the text cannot be read, or its sequences are longer than the context of the model.
    pub fn read(&self, model: &LoadedModel, tokens: usize) -> Result<Text, CompressError> {
        let vocabulary = LanguageModel::of(&model.model.proto)?.known_vocabulary();
        let length = Context::fitted(self.length, model).map_err(CompressError::long(model))?;
        Ok(Text::read(&self.source, vocabulary, tokens, length)?)
    }
}

/// The options of a compression. The default is an exact rewrite with validation.
#[derive(Debug, Clone)]
pub struct Request<'f> {
    /// Options of the rewrite: ranks, form and others.
    pub options: RewriteOptions<'f>,
    /// If set, a small cache that keeps this promise on held-out text is searched, and the ranks of `options` are
    /// ignored.
    pub promise: Option<Promise>,
    /// Whether the search for a promise may also round the cache to integers, if `options` has the model's own type.
    pub searches_bits: bool,
    /// Whether all layers have the same rank.
    pub widths: Widths,
    /// The factorization. `None`: [`Factorization::Calibrated`] if the rewrite is lossy and statistics or a text are
    /// given, else [`Factorization::Weights`].
    pub factorization: Option<Factorization>,
    /// Accept statistics with fewer tokens per dimension than [`crate::fit::reach::FEWEST`].
    pub takes_few_tokens: bool,
    /// Statistics of the model. `None`: they are computed from the text if the factorization needs them.
    pub statistics: Option<ModelStatistics>,
    /// The text.
    pub text: Option<TextRequest>,
    /// Steps of local reconstruction per layer; 0: no reconstruction.
    pub reconstruction_steps: usize,
    /// Steps of distillation from the original after the rewrite; 0: none.
    #[cfg(feature = "train")]
    pub distillation_steps: usize,
    /// Options of the runtime.
    pub runtime: RuntimeOptions,
    /// Options of the validation; `None`: no validation.
    pub proof: Option<ProofOptions>,
    /// Whether to measure what only a report shows: the errors of each layer, and the continuation of a prompt.
    pub in_detail: bool,
}

impl Default for Request<'_> {
    fn default() -> Self {
        Self {
            options: RewriteOptions::default(),
            promise: None,
            searches_bits: true,
            widths: Widths::Uniform,
            factorization: None,
            takes_few_tokens: false,
            statistics: None,
            text: None,
            reconstruction_steps: 300,
            #[cfg(feature = "train")]
            distillation_steps: 0,
            runtime: RuntimeOptions {
                optimize: true,
                ..RuntimeOptions::default()
            },
            proof: Some(ProofOptions::default()),
            in_detail: false,
        }
    }
}

impl Request<'_> {
    /// Whether an exact rewrite is requested.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        let all_numbers = self.options.ranks == RankPlan::Full && self.promise.is_none();
        all_numbers && self.options.bits == CacheBits::Model
    }

    /// The factorization, with the default applied.
    #[must_use]
    pub fn factorization(&self) -> Factorization {
        match self.factorization {
            Some(factorization) => factorization,
            None if self.has_data() && !self.is_exact() => Factorization::Calibrated,
            None => Factorization::Weights,
        }
    }

    /// The options of the reconstruction for a context of `positions` positions; `None` if there is none. Only
    /// calibrated factors are reconstructed.
    #[must_use]
    pub fn descent(&self, positions: usize) -> Option<Descent> {
        let starts = self.factorization() == Factorization::Calibrated;
        descent(self.reconstruction_steps, positions).filter(|_| starts)
    }

    /// Refuses an integer cache if there is no text for its scales. This check needs no model.
    ///
    /// # Errors
    /// [`NoScales`] if scales cannot be computed.
    pub fn check_bits(&self) -> Result<(), NoScales> {
        if self.options.bits == CacheBits::Model || self.scales_are_known() {
            return Ok(());
        }
        Err(match self.has_data() {
            true => NoScales::Unread(self.factorization().name()),
            false => NoScales::NoText,
        })
    }

    /// Refuses statistics, given or to be made of the text `fitted`, with so few tokens that factors would overfit them.
    ///
    /// # Errors
    /// [`CompressError::FewTokens`].
    pub(crate) fn check_reach(
        &self,
        fitted: Option<&Text>,
        subject: (&LoadedModel, &Analysis),
    ) -> Result<(), CompressError> {
        if self.takes_few_tokens || self.factorization() == Factorization::Weights {
            return Ok(());
        }
        match (&self.statistics, &self.text, fitted) {
            (Some(statistics), ..) => Ok(Reach::of(statistics).check()?),
            (None, Some(asked), Some(fitted)) => asked.check_reach(fitted, subject),
            _ => Ok(()),
        }
    }

    /// Whether there are sampled rows of a text, which determine the range of integers.
    pub(crate) fn scales_are_known(&self) -> bool {
        let reads = !matches!(
            self.factorization(),
            Factorization::Weights | Factorization::TransMla { .. }
        );
        self.has_data() && reads
    }

    /// Whether statistics or a text are given.
    #[must_use]
    pub fn has_data(&self) -> bool {
        self.statistics.is_some() || self.text.is_some()
    }

    /// Refuses separate ranks if the rest of the request does not allow them. This check needs no model.
    ///
    /// # Errors
    /// [`FreeWidthsError`] with the reason.
    pub fn check_widths(&self) -> Result<(), FreeWidthsError> {
        if self.widths == Widths::Uniform {
            return Ok(());
        }
        if self.options.form.keeps_heads() {
            return Err(FreeWidthsError::Heads);
        }
        if matches!(self.factorization(), Factorization::TransMla { .. }) {
            return Err(FreeWidthsError::OwnLayout);
        }
        if self.widths == Widths::Free && self.options.form.target() == Target::Gqa {
            return Err(FreeWidthsError::OneWidth);
        }
        if self.promise.is_some() {
            return Err(FreeWidthsError::Promise);
        }
        match self.options.ranks {
            RankPlan::Full => Err(FreeWidthsError::NoBudget),
            _ => Ok(()),
        }
    }
}

/// A descent of `steps` steps, with sequences moved within `positions` positions; `None` for 0 steps.
pub(crate) fn descent(steps: usize, positions: usize) -> Option<Descent> {
    (steps > 0).then_some(Descent {
        steps,
        queries: QUERIES,
        rate: RATE,
        positions,
    })
}
