//! A model compressed in several ways at several sizes, to compare what each loses on a text.

use std::path::Path;

use gqa2mla_passes::{Absorbed, Decoupled, Expanded, Form, RankPlan, RewriteOptions};

use crate::compress::compressor::{Compressor, Destination, analysis};
use crate::compress::error::CompressError;
use crate::compress::events::{Observer, Stage, steps};
use crate::compress::request::{TextRequest, descent};
use crate::files::load::LoadedModel;
use crate::files::save::DataFile;
use crate::files::staging::Staging;
use crate::fit::calibrate::{Analyzed, calibrate};
use crate::fit::context::Context;
use crate::fit::factors::Factorization;
use crate::fit::reach::Reach;
use crate::fit::statistics::ModelStatistics;
use crate::measure::quality::Quality;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;
use crate::validate::ports::LanguageModel;

/// A factorization with a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Factors from the weights alone.
    Weights,
    /// Unweighted principal components of what is cached.
    Plain,
    /// Weighted by queries and o_proj.
    Weighted,
    /// Weighted, with means given back.
    Calibrated,
    /// Calibrated, then reconstructed layer by layer.
    Reconstructed,
    /// Calibrated, in the expanded form.
    Expanded,
    /// Calibrated, in the expanded form, reconstructed layer by layer.
    ExpandedReconstructed,
    /// TransMLA's recipe, in its own cache layout.
    TransMla,
}

impl Way {
    /// Every way, from the one that needs least to the one that costs most, and the recipe they are compared with.
    pub const ALL: [Self; 8] = [
        Self::Weights,
        Self::Plain,
        Self::Weighted,
        Self::Calibrated,
        Self::Reconstructed,
        Self::Expanded,
        Self::ExpandedReconstructed,
        Self::TransMla,
    ];

    /// The name that the command line and tables use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Plain => "plain",
            Self::Weighted => "weighted",
            Self::Calibrated => "calibrated",
            Self::Reconstructed => "reconstructed",
            Self::Expanded => "expanded",
            Self::ExpandedReconstructed => "expanded-reconstructed",
            Self::TransMla => "transmla",
        }
    }

    /// What it is, in one line.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::Weights => "Factors from the weights alone",
            Self::Plain => "Unweighted principal components of what is cached",
            Self::Weighted => "Weighted by queries and o_proj",
            Self::Calibrated => "Weighted, with means given back",
            Self::Reconstructed => "Calibrated, then reconstructed layer by layer",
            Self::Expanded => "Calibrated, in the expanded form",
            Self::ExpandedReconstructed => "The same, reconstructed layer by layer",
            Self::TransMla => "TransMLA's recipe, in its own cache layout",
        }
    }

    fn factorization(self, fold: usize) -> Factorization {
        match self {
            Self::Weights => Factorization::Weights,
            Self::Plain => Factorization::Plain,
            Self::Weighted => Factorization::Weighted,
            Self::TransMla => Factorization::TransMla { fold },
            _ => Factorization::Calibrated,
        }
    }

    fn form(self) -> &'static dyn Form {
        match self {
            Self::Expanded | Self::ExpandedReconstructed => &Expanded,
            Self::TransMla => &Decoupled,
            _ => &Absorbed,
        }
    }

    fn reconstructs(self) -> bool {
        matches!(self, Self::Reconstructed | Self::ExpandedReconstructed)
    }
}

/// What to compare, and on what.
#[derive(Debug, Clone)]
pub struct WaysRequest {
    /// Shares of the cache that are kept, above 0 and at most 1.
    pub ratios: Vec<f64>,
    /// The ways.
    pub ways: Vec<Way>,
    /// Neighbouring frequencies that TransMLA's recipe takes as one.
    pub freq_fold: usize,
    /// Positions to be served; `None` is what a configuration beside the model tells.
    pub context: Option<usize>,
    /// Make factors even of statistics of fewer tokens than [`crate::fit::reach::FEWEST`] for each direction.
    pub takes_few_tokens: bool,
    /// Steps of local reconstruction in each layer, in the ways that reconstruct; 0 leaves it out.
    pub reconstruction_steps: usize,
    /// Statistics of the model; `None` makes them from the text.
    pub statistics: Option<ModelStatistics>,
    /// The text that factors are fitted to.
    pub text: Option<TextRequest>,
    /// The text to measure on; `None` is the last part of the other, which is then left out of the fit.
    pub test: Option<TextRequest>,
    /// Measure on at most this many tokens.
    pub test_tokens: usize,
    /// Where the models run.
    pub runtime: RuntimeOptions,
}

/// What one way loses at one size.
#[derive(Debug, Clone, PartialEq)]
pub struct WayMeasured {
    /// Share of the cache that is kept.
    pub ratio: f64,
    /// The way.
    pub way: Way,
    /// What it loses.
    pub quality: Quality,
}

/// Compresses `model` in every way at every size and measures each; no model is kept.
///
/// # Errors
/// [`CompressError`] of the first that cannot be made or measured.
pub fn compare_ways(
    model: &LoadedModel,
    request: &WaysRequest,
    observer: &mut Observer,
) -> Result<Vec<WayMeasured>, CompressError> {
    let (fitted, test) = texts(model, request)?;
    // Every way spells operators out as the default form does.
    let analysis = analysis(model, &RewriteOptions::default())?;
    let context = Context::of(request.context, &model.path);
    let test = test.in_sequences_of(context.positions);
    let made = match (&request.statistics, &fitted) {
        (Some(_), _) => None,
        (None, None) => return Err(CompressError::NoText),
        (None, Some(text)) => {
            let progress = &mut steps(Stage::Calibrating, observer);
            let subject = Analyzed {
                model,
                analysis: &analysis,
            };
            let made = calibrate(subject, text, &request.runtime, None, progress);
            Some(made.map_err(|cause| CompressError::Calibrate {
                path: model.path.display().to_string(),
                cause: Box::new(cause),
            })?)
        }
    };
    let statistics = request.statistics.as_ref().or(made.as_ref());
    let reach = statistics.map(Reach::of);
    if let Some(reach) = reach.filter(Reach::is_too_short)
        && !request.takes_few_tokens
    {
        let tokens_a_direction = reach.tokens_a_direction;
        return Err(CompressError::FewTokens { tokens_a_direction });
    }
    // What a run that is killed leaves there is cleared by the next one.
    let scratch = std::env::temp_dir().join(format!("compare-{}", std::process::id()));
    let scratch = Staging::file(&scratch)?;
    let folder = scratch.path(Path::new(""));
    let destination = Destination {
        out: &folder,
        data: DataFile::Beside,
        work: None,
    };
    let pairs = request.ratios.iter();
    let pairs = pairs.flat_map(|ratio| request.ways.iter().map(move |way| (*ratio, *way)));
    let measured = pairs.map(|(ratio, way)| {
        let reconstruction = fitted
            .as_ref()
            .zip(descent(request.reconstruction_steps, context.positions));
        let compressor = Compressor {
            model,
            analysis: &analysis,
            destination: &destination,
            statistics: statistics.filter(|_| way != Way::Weights),
            factorization: way.factorization(request.freq_fold),
            reconstruction: reconstruction.filter(|_| way.reconstructs()),
            runtime: &request.runtime,
        };
        let options = RewriteOptions {
            ranks: RankPlan::Ratio(ratio),
            form: way.form(),
            context: Some(context.positions),
            ..RewriteOptions::default()
        };
        let (_, quality) = compressor.measure(&options, &test, observer)?;
        Ok(WayMeasured {
            ratio,
            way,
            quality,
        })
    });
    measured.collect()
}

/// The text to fit to, if there is one, and the text to measure on.
fn texts(
    model: &LoadedModel,
    request: &WaysRequest,
) -> Result<(Option<Text>, Text), CompressError> {
    let vocabulary = LanguageModel::of(&model.model.proto)?.vocabulary;
    let read = |text: &TextRequest| Text::read(&text.source, vocabulary, text.tokens, text.length);
    let fitted = request.text.as_ref().map(read).transpose()?;
    if let Some(test) = &request.test {
        return Ok((fitted, read(test)?));
    }
    let whole = fitted.ok_or(CompressError::NoText)?;
    let parts = whole.hold_out(request.test_tokens);
    let (fitted, test) = parts.ok_or(CompressError::ShortText)?;
    Ok((Some(fitted), test))
}
