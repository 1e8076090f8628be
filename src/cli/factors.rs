//! The options that say where factors come from.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use gqa2mla::files::load::LoadedModel;
use gqa2mla::fit::calibrate::{ModelStatistics, calibrate, store};
use gqa2mla::fit::context::Context as Served;
use gqa2mla::fit::factors::Factorization;
use gqa2mla::measure::text::Text;
use gqa2mla::runtime::RuntimeOptions;
use gqa2mla_passes::factor::reconstruct::Descent;

use crate::cli::screen::{complain, progress};
use crate::cli::text::TextArgs;
use crate::cli::{UsageError, no_text};

/// Factors and what they are made from.
#[derive(Debug, Clone, Args)]
pub struct FactorArgs {
    /// Where the factors come from; the default is `calibrated` where statistics or a text are given, else `weights`.
    #[arg(long, value_enum, value_name = "METHOD")]
    factors: Option<Method>,
    /// Statistics of this model, made by `calibrate`.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    pub text: TextArgs,
    /// Read at most this many tokens of the text.
    #[arg(long, default_value_t = 16_384, value_name = "N")]
    pub text_tokens: usize,
    /// Tokens of the text that are read together.
    #[arg(long, default_value_t = 1024, value_name = "L")]
    pub text_length: usize,
    /// Positions of the contexts to be served: rotated keys are averaged over them, and what is lost is measured up to
    /// them; the default is the maximum in config.json or genai_config.json beside the model, or else 4096.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Make factors of statistics of fewer than 10 tokens a direction, which say little about other text.
    #[arg(long)]
    force: bool,
    /// Steps of local reconstruction in each layer, on the text; 0 leaves it out.
    #[arg(long, default_value_t = 300, value_name = "STEPS")]
    reconstruct: usize,
}

/// A factorization, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Principal components of the projection weights; needs no data.
    Weights,
    /// Principal components of what the text makes the cache hold, every direction alike.
    Plain,
    /// The same, weighted by the queries that read keys and the o_proj that reads outputs.
    Weighted,
    /// The same, with keys about their mean and values weighted by the attention they receive.
    Calibrated,
    /// TransMLA's recipe in its own cache layout, for comparison: it drops rotation and is exact at no rank.
    Transmla,
}

impl Method {
    /// As the library takes it.
    pub fn factorization(self) -> Factorization {
        match self {
            Self::Weights => Factorization::Weights,
            Self::Plain => Factorization::Plain,
            Self::Weighted => Factorization::Weighted,
            Self::Calibrated => Factorization::Calibrated,
            Self::Transmla => Factorization::TransMla { fold: 1 },
        }
    }
}

/// Queries that one step of the reconstruction looks at, and the rate it begins with: of those tried, the ones that
/// lower the error of a layer most in the same time (docs/trials.md).
const QUERIES: usize = 256;
const RATE: f64 = 1e-3;

/// Tokens for each direction of a second moment: below the first number its smaller eigenvalues are those of the text and
/// not of the model, below the second they are off by some tens of percent.
const FEWEST: f64 = 10.0;
pub const FEW: f64 = 50.0;

/// A warning of statistics of so many `tokens` for each direction.
pub fn few_tokens(tokens: f64) -> String {
    format!(
        "warning: {tokens:.1} tokens for each direction of the cache are few: from {FEW} on, more text hardly changes the factors"
    )
}

impl FactorArgs {
    /// Which factorization; `exact` says that nothing is to be lost, so that none is better than another.
    pub fn factorization(&self, exact: bool) -> Factorization {
        let data = self.calibration.is_some() || self.text.source().is_some();
        match self.factors {
            Some(method) => method.factorization(),
            None if data && !exact => Factorization::Calibrated,
            None => Factorization::Weights,
        }
    }

    /// The positions that `model` is to serve.
    pub fn context(&self, model: &LoadedModel) -> Served {
        let asked = self.context.and_then(|n| usize::try_from(n).ok());
        Served::of(asked, &model.path)
    }

    /// Whether TransMLA's recipe is asked for.
    pub fn is_transmla(&self) -> bool {
        self.factors == Some(Method::Transmla)
    }

    /// How to reconstruct on the text, if that is wanted.
    pub fn descent(&self, factorization: Factorization, context: &Served) -> Option<Descent> {
        let wanted = self.reconstruct > 0 && factorization == Factorization::Calibrated;
        wanted.then_some(Descent {
            steps: self.reconstruct,
            queries: QUERIES,
            rate: RATE,
            positions: context.positions,
        })
    }

    /// The statistics that `factorization` needs: from their file, or from the text.
    pub fn statistics(
        &self,
        factorization: Factorization,
        model: &LoadedModel,
        text: Option<&Text>,
        runtime: &RuntimeOptions,
    ) -> anyhow::Result<Option<ModelStatistics>> {
        if factorization == Factorization::Weights {
            if self.calibration.is_some() && self.factors == Some(Method::Weights) {
                let words = "--factors weights makes no use of --calibration".to_owned();
                return Err(UsageError(words).into());
            }
            return Ok(None);
        }
        let sums = match &self.calibration {
            Some(path) => store::load(path)?,
            None => {
                let text = text.ok_or_else(no_text)?;
                calibrate(model, text, runtime, None, &mut progress("calibrating"))
                    .with_context(|| model.path.display().to_string())?
            }
        };
        let tokens = sums.tokens_a_direction();
        if tokens < FEWEST && !self.force {
            let words = format!(
                "the statistics hold {tokens:.1} tokens for each direction of the cache, and at least {FEWEST} are needed: give more text, or --force"
            );
            return Err(anyhow::anyhow!(words));
        }
        if tokens < FEW {
            complain(&few_tokens(tokens));
        }
        Ok(Some(sums))
    }
}
