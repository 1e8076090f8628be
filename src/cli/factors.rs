//! The options that say where factors come from.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use gqa2mla::files::load::LoadedModel;
use gqa2mla::fit::calibrate::{ModelStatistics, calibrate, store};
use gqa2mla::fit::factors::Factorization;
use gqa2mla::measure::text::Text;
use gqa2mla::runtime::RuntimeOptions;
use gqa2mla_passes::factor::reconstruct::Descent;

use crate::cli::screen::progress;
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
    /// Positions of the contexts to be served: factors from weights alone average rotated keys over them.
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: u32,
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

    /// Positions to average over.
    pub fn context(&self) -> Option<usize> {
        usize::try_from(self.context).ok()
    }

    /// Whether TransMLA's recipe is asked for.
    pub fn is_transmla(&self) -> bool {
        self.factors == Some(Method::Transmla)
    }

    /// How to reconstruct on the text, if that is wanted.
    pub fn descent(&self, factorization: Factorization) -> Option<Descent> {
        let wanted = self.reconstruct > 0 && factorization == Factorization::Calibrated;
        wanted.then_some(Descent {
            steps: self.reconstruct,
            queries: QUERIES,
            rate: RATE,
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
        if let Some(path) = &self.calibration {
            return Ok(Some(store::load(path)?));
        }
        let text = text.ok_or_else(no_text)?;
        let sums = calibrate(model, text, runtime, None, &mut progress("calibrating"))
            .with_context(|| model.path.display().to_string())?;
        Ok(Some(sums))
    }
}
