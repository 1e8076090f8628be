//! Comparison of methods, each a factorization with a form: their losses at several cache sizes.

use std::path::{Path, PathBuf};

use gqa2mla_passes::factor::{CacheBits, Ranks};
use gqa2mla_passes::forms::{GroupedQuery, KeptHeads};
use gqa2mla_passes::operators::Target;
use gqa2mla_passes::{Absorbed, Decoupled, Expanded, Form, RankPlan, RewriteOptions};

use crate::compress::compressor::{Compressor, Destination, analysis};
use crate::compress::convert::ConvertError;
use crate::compress::error::CompressError;
use crate::compress::events::{Observer, Stage, steps};
use crate::compress::frontier::Point;
use crate::compress::kept_rows::KeptRows;
use crate::compress::request::{TextRequest, descent};
use crate::files::identity::identity;
use crate::files::load::LoadedModel;
use crate::files::save::DataFile;
use crate::files::staging::Staging;
use crate::fit::calibrate::{Analyzed, calibrate, checksum};
use crate::fit::context::Context;
use crate::fit::factors::Factorization;
use crate::fit::reach::Reach;
use crate::fit::statistics::ModelStatistics;
use crate::measure::quality::Quality;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;

/// A method: a factorization combined with a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Factors from the weights only.
    Weights,
    /// Unweighted principal components of the cached rows.
    Plain,
    /// Principal components weighted by queries and o_proj.
    Weighted,
    /// Weighted principal components with bias correction of the means.
    Calibrated,
    /// As `Calibrated`, then local reconstruction.
    Reconstructed,
    /// As `Calibrated`, in the expanded form.
    Expanded,
    /// As `Calibrated`, in the expanded form, then local reconstruction.
    ExpandedReconstructed,
    /// TransMLA, in its own cache layout.
    TransMla,
    /// The KV heads without a latent, as integers of the model's own operator.
    KeptHeads,
}

impl Way {
    /// All methods in the order of their cost, followed by TransMLA and the heads without a latent for comparison.
    pub const ALL: [Self; 9] = [
        Self::Weights,
        Self::Plain,
        Self::Weighted,
        Self::Calibrated,
        Self::Reconstructed,
        Self::Expanded,
        Self::ExpandedReconstructed,
        Self::TransMla,
        Self::KeptHeads,
    ];

    /// The name on the command line and in tables.
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
            Self::KeptHeads => "kept-heads",
        }
    }

    /// A description in one line.
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
            Self::KeptHeads => "No latent: the heads as integers of GroupQueryAttention",
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

    /// The form of this method for a cache of numbers of `bits`.
    fn form(self, bits: CacheBits) -> &'static dyn Form {
        match self {
            Self::Expanded | Self::ExpandedReconstructed => &Expanded,
            Self::TransMla => &Decoupled,
            Self::KeptHeads => &KeptHeads,
            _ if matches!(bits, CacheBits::Six | CacheBits::Four) => &GroupedQuery,
            _ => &Absorbed,
        }
    }

    /// The sizes to try: each a share of the cached elements, and the bits of an element. Integers are tried only with
    /// the best factors, and also at full rank, where factors lose nothing.
    fn sizes(self, ratios: &[f64], bits: &[CacheBits]) -> Vec<(f64, CacheBits)> {
        let integers = bits.iter().filter(|&&bits| bits != CacheBits::Model);
        let whole = integers.map(|&bits| (1.0, bits));
        let narrow = |bits: CacheBits| ratios.iter().map(move |&ratio| (ratio, bits));
        match self {
            Self::KeptHeads => whole.filter(|(_, bits)| *bits != CacheBits::Six).collect(),
            Self::Calibrated => whole.chain(bits.iter().copied().flat_map(narrow)).collect(),
            Self::Reconstructed => bits.iter().copied().flat_map(narrow).collect(),
            _ => {
                let own = bits.iter().copied().filter(|&b| b == CacheBits::Model);
                own.flat_map(narrow).collect()
            }
        }
    }

    fn reconstructs(self) -> bool {
        matches!(self, Self::Reconstructed | Self::ExpandedReconstructed)
    }
}

/// The options of a comparison.
#[derive(Debug, Clone)]
pub struct WaysRequest {
    /// Cache ratios, above 0 and at most 1.
    pub ratios: Vec<f64>,
    /// The methods to compare.
    pub ways: Vec<Way>,
    /// Bits of a cached number to compare.
    pub bits: Vec<CacheBits>,
    /// Number of neighbouring frequencies that TransMLA treats as one (FreqFold).
    pub freq_fold: usize,
    /// Target context length in tokens; `None`: that of the model's configuration.
    pub context: Option<usize>,
    /// Accept statistics with fewer tokens per dimension than [`crate::fit::reach::FEWEST`].
    pub takes_few_tokens: bool,
    /// Steps of local reconstruction per layer, for ways with reconstruction; 0: no reconstruction.
    pub reconstruction_steps: usize,
    /// Statistics of the model; `None`: computed from the text.
    pub statistics: Option<ModelStatistics>,
    /// The text for fitting.
    pub text: Option<TextRequest>,
    /// The text for measuring; `None`: the last part of `text`, which is then not used for fitting.
    pub test: Option<TextRequest>,
    /// Largest number of tokens for measuring.
    pub test_tokens: usize,
    /// Options of the runtime.
    pub runtime: RuntimeOptions,
    /// The folder in which finished rows are kept until the comparison is complete; `None`: they are not kept.
    pub work: Option<PathBuf>,
}

impl WaysRequest {
    /// All that the rows of a comparison of `model` depend on, as text.
    fn inputs(
        &self,
        model: &LoadedModel,
        (fitted, test): (Option<&Text>, &Text),
        positions: usize,
    ) -> Result<String, CompressError> {
        let of_model = identity(&model.model).map_err(|cause| CompressError::Calibrate {
            path: model.path.display().to_string(),
            cause: Box::new(cause.into()),
        })?;
        let of_text = |text: &Text| format!("{} by {}", checksum(text), text.length);
        let statistics = self.statistics.as_ref();
        let statistics = statistics.map(|s| (&s.model, &s.text, s.sequences, s.length));
        Ok(format!(
            "{} {of_model} {:?} {} {statistics:?} {positions} {:?} {:?} {:?} {} {} {:?}",
            env!("CARGO_PKG_VERSION"),
            fitted.map(of_text),
            of_text(test),
            self.ratios,
            self.ways,
            self.bits,
            self.freq_fold,
            self.reconstruction_steps,
            self.runtime,
        ))
    }
}

/// The quality of one method at one cache ratio.
#[derive(Debug, Clone, PartialEq)]
pub struct WayMeasured {
    /// Cached elements as a share of those of the original.
    pub ratio: f64,
    /// The method.
    pub way: Way,
    /// The bytes of the cache, and the loss.
    pub point: Point,
    /// The measured quality.
    pub quality: Quality,
}

/// A method that cannot be applied to the model at one size, for example because it needs an operator that the model
/// does not have.
#[derive(Debug)]
pub struct LeftOut {
    /// The method.
    pub way: Way,
    /// Cached elements as a share of those of the original.
    pub ratio: f64,
    /// Bits of a cached number.
    pub bits: CacheBits,
    /// The reason.
    pub cause: ConvertError,
}

/// The results of a comparison.
#[derive(Debug, Default)]
pub struct Compared {
    /// The measurements; at least one.
    pub rows: Vec<WayMeasured>,
    /// The methods that could not be applied.
    pub left_out: Vec<LeftOut>,
}

/// Compresses `model` by every method at every ratio and measures the results. The rewritten models are removed. `row`
/// is called with each result. Ratios that give equal ranks are measured once.
///
/// # Errors
/// The first [`CompressError`]; if no method can be applied, the reason of the first.
pub fn compare_ways(
    model: &LoadedModel,
    request: &WaysRequest,
    observer: &mut Observer,
    row: &mut dyn FnMut(&WayMeasured),
) -> Result<Compared, CompressError> {
    let (fitted, test) = texts(model, request)?;
    let analysis_of = |form: &'static dyn Form| {
        let options = RewriteOptions {
            form,
            ..RewriteOptions::default()
        };
        analysis(model, &options)
    };
    // There are two analyses: one with operators expanded into primitives, and one that keeps the operators that
    // support integers.
    let (spelled, fused) = (analysis_of(&Absorbed)?, analysis_of(&GroupedQuery)?);
    let context = Context::of(request.context, model).map_err(CompressError::long(model))?;
    let test = test.in_sequences_of(context.positions);
    let inputs = request.inputs(model, (fitted.as_ref(), &test), context.positions)?;
    let mut kept = KeptRows::open(request.work.as_deref(), &inputs);
    let made = match (&request.statistics, &fitted) {
        (Some(_), _) => None,
        (None, None) => return Err(CompressError::NoText),
        (None, Some(text)) => {
            let progress = &mut steps(Stage::Calibrating, observer);
            let subject = Analyzed {
                model,
                analysis: &spelled,
            };
            let partial = kept.statistics();
            let made = calibrate(
                subject,
                text,
                &request.runtime,
                partial.as_deref(),
                progress,
            );
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
    // Leftovers of a killed run are removed by the next run.
    let scratch = std::env::temp_dir().join(format!("compare-{}", std::process::id()));
    let scratch = Staging::file(&scratch)?;
    let folder = scratch.path(Path::new(""));
    let destination = Destination {
        out: &folder,
        data: DataFile::Beside,
        work: None,
    };
    let mut compared = Compared::default();
    let mut known: Vec<(Way, CacheBits, Vec<Ranks>)> = Vec::new();
    for &way in &request.ways {
        for (ratio, bits) in way.sizes(&request.ratios, &request.bits) {
            let form = way.form(bits);
            let reconstruction = fitted
                .as_ref()
                .zip(descent(request.reconstruction_steps, context.positions));
            let compressor = Compressor {
                model,
                analysis: match form.target() {
                    Target::Gqa => &fused,
                    _ => &spelled,
                },
                destination: &destination,
                statistics: statistics.filter(|_| way != Way::Weights),
                factorization: way.factorization(request.freq_fold),
                reconstruction: reconstruction.filter(|_| way.reconstructs()),
                runtime: &request.runtime,
            };
            let options = RewriteOptions {
                ranks: match form.keeps_heads() {
                    true => RankPlan::Full,
                    false => RankPlan::Ratio(ratio),
                },
                bits,
                form,
                context: Some(context.positions),
                ..RewriteOptions::default()
            };
            let ranks = match compressor.check(&options) {
                Ok(planned) => planned.iter().map(|site| site.ranks).collect(),
                Err(CompressError::Convert(cause)) => {
                    compared.left_out.push(LeftOut {
                        way,
                        ratio,
                        bits,
                        cause,
                    });
                    continue;
                }
                Err(other) => return Err(other),
            };
            let same = (way, bits, ranks);
            if known.contains(&same) {
                continue;
            }
            known.push(same);
            let (rank, quality) = match kept.find(way.name(), bits, ratio) {
                Some(finished) => finished,
                None => {
                    let (done, quality) = compressor.measure(&options, &test, observer)?;
                    let ranks = done.sites.iter().map(|s| s.ranks.key.max(s.ranks.value));
                    let finished = (ranks.max().unwrap_or_default(), quality);
                    kept.keep((way.name(), bits, ratio), &finished)?;
                    finished
                }
            };
            let made = WayMeasured {
                ratio,
                way,
                point: Point::of(way.name(), bits, rank, &quality, None),
                quality,
            };
            row(&made);
            compared.rows.push(made);
        }
    }
    kept.finish();
    match compared.rows.is_empty() && !compared.left_out.is_empty() {
        true => Err(compared.left_out.swap_remove(0).cause.into()),
        false => Ok(compared),
    }
}

/// The text for fitting, if there is one, and the text for measuring.
fn texts(
    model: &LoadedModel,
    request: &WaysRequest,
) -> Result<(Option<Text>, Text), CompressError> {
    let read = |text: &TextRequest, more: usize| text.read(model, text.tokens.saturating_add(more));
    if let Some(test) = &request.test {
        let fitted = request.text.as_ref().map(|text| read(text, 0));
        return Ok((fitted.transpose()?, read(test, 0)?));
    }
    let text = request.text.as_ref().ok_or(CompressError::NoText)?;
    let whole = read(text, request.test_tokens)?;
    let parts = whole.hold_out(request.test_tokens);
    let (fitted, test) = parts.ok_or(CompressError::ShortText)?;
    Ok((Some(fitted.first(text.tokens)), test))
}
