//! The options of the factorization.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use gqa2mla_passes::Form;

use crate::cli::exit::UsageError;
use crate::cli::text::TextArgs;
use crate::cli::values::length;
use crate::compress::request::TextRequest;
use crate::fit::calibrate::store;
use crate::fit::factors::Factorization;
use crate::fit::statistics::ModelStatistics;

/// The options of the factorization and its data.
#[derive(Debug, Clone, Args)]
pub struct FactorArgs {
    /// How the factors are computed.
    ///
    /// `weights`: principal components of the projection weights; needs no data. `plain`: principal components of the
    /// cached keys and values of the text. `weighted`: the same, with errors weighted by the queries that read keys and
    /// the o_proj that reads outputs. `calibrated`: the same, with centred keys, values weighted by the attention they
    /// receive, and a bias correction. `transmla`: TransMLA's recipe in its own cache layout, for comparison; it drops
    /// rotation and is never exact. The default is `calibrated` if statistics or a text are given, and otherwise
    /// `weights`.
    #[arg(
        hide_short_help = true,
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "METHOD"
    )]
    factors: Option<Method>,
    /// Statistics of this model, made by `calibrate`.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    #[command(flatten)]
    pub text: TextArgs,
    /// Fit factors to at most this many tokens of the text.
    ///
    /// The default is 16384.
    #[arg(hide_short_help = true, long, value_name = "N")]
    calibration_tokens: Option<usize>,
    /// Tokens per sequence of the text.
    ///
    /// The default is 1024, or the model's context if that is shorter.
    #[arg(hide_short_help = true, long, value_name = "L", value_parser = length)]
    pub length: Option<usize>,
    /// Target context length in tokens.
    ///
    /// Rotated keys are averaged over all its positions, and the loss is measured up to it. The default is the maximum
    /// in genai_config.json or config.json beside the model, or else 4096.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Accept few tokens, and replace files of other origin.
    ///
    /// Accept statistics of fewer than 10 tokens per dimension of the cached rows, whose factors may not fit other
    /// text. A rewrite also replaces an output that gqa2mla did not write.
    #[arg(long)]
    pub force: bool,
    /// Steps of local reconstruction per layer; 0: none.
    ///
    /// The default is 300.
    #[arg(long, value_name = "STEPS")]
    reconstruct: Option<usize>,
}

/// A factorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Principal components of the projection weights; needs no data.
    Weights,
    /// Principal components of the cached keys and values of the text.
    Plain,
    /// The same, with errors weighted by the queries that read keys and the o_proj that reads outputs.
    Weighted,
    /// The same, with centred keys, values weighted by the attention they receive, and a bias correction.
    Calibrated,
    /// TransMLA's recipe in its own cache layout, for comparison; it drops rotation and is never exact.
    Transmla,
}

impl Method {
    /// The factorization for the library.
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

/// Tokens of a text that factors are fitted to, if it has as many.
const TOKENS: usize = 16_384;
/// Steps of local reconstruction per layer.
const STEPS: usize = 300;

impl FactorArgs {
    /// The requested factorization.
    pub fn factorization(&self) -> Option<Factorization> {
        self.factors.map(Method::factorization)
    }

    /// Whether TransMLA is requested.
    pub fn is_transmla(&self) -> bool {
        self.factors == Some(Method::Transmla)
    }

    /// The requested target context length.
    pub fn context(&self) -> Option<usize> {
        self.context.and_then(|n| usize::try_from(n).ok())
    }

    /// Steps of local reconstruction.
    pub fn reconstruction_steps(&self) -> usize {
        self.reconstruct.unwrap_or(STEPS)
    }

    /// Refuses a reconstruction in a form that has none.
    ///
    /// # Errors
    /// [`UsageError`].
    pub fn check_reconstructed(&self, form: &dyn Form) -> Result<(), UsageError> {
        let asked = self.reconstruct.is_some_and(|steps| steps > 0);
        match asked && !form.is_reconstructed() {
            true => Err(UsageError(
                "--reconstruct fits factors of two separate latents: leave it out with --form joint and --factors transmla"
                    .to_owned(),
            )),
            false => Ok(()),
        }
    }

    /// Refuses options that only apply to a text if none is given.
    ///
    /// # Errors
    /// [`UsageError`] names the first such option.
    pub fn check_used(&self) -> Result<(), UsageError> {
        let given = [
            ("--calibration-tokens", self.calibration_tokens.is_some()),
            ("--length", self.length.is_some()),
            (
                "--reconstruct",
                self.reconstruct.is_some_and(|steps| steps > 0),
            ),
        ];
        if let (false, Some((name, _))) =
            (self.text.is_given(), given.iter().find(|(_, given)| *given))
        {
            let words = format!("{name} is about a text: give --text FILE or --token-ids FILE");
            return Err(UsageError(words));
        }
        Ok(())
    }

    /// The text for fitting, if one is given. The default tokenizer is the one beside `model`.
    pub fn text(&self, model: &Path) -> anyhow::Result<Option<TextRequest>> {
        let source = self.text.source(model)?;
        Ok(source.map(|source| TextRequest {
            source,
            tokens: self.calibration_tokens.unwrap_or(TOKENS),
            length: self.length,
        }))
    }

    /// All files that are read for the factors.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let statistics = self.calibration.iter().map(PathBuf::as_path);
        statistics.chain(self.text.files())
    }

    /// The statistics, read from the file, if one is given.
    pub fn statistics(&self) -> anyhow::Result<Option<ModelStatistics>> {
        let Some(path) = &self.calibration else {
            return Ok(None);
        };
        if self.factors == Some(Method::Weights) {
            let words = "--factors weights makes no use of --calibration".to_owned();
            return Err(UsageError(words).into());
        }
        Ok(Some(store::load(path)?))
    }
}
