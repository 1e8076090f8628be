//! Comparison of methods: their losses at several cache sizes.

use std::path::{Path, PathBuf};

use gqa2mla_passes::factor::CacheBits;
use gqa2mla_passes::operators::Target;

use crate::compress::compressor::{Compressor, Destination};
use crate::compress::error::CompressError;
use crate::compress::events::{Event, Observer, Stage, steps};
use crate::compress::frontier::Point;
use crate::compress::kept_rows::KeptRows;
use crate::compress::request::{TextRequest, descent};
use crate::compress::sizes::{Analyses, LeftOut, Rounded, Size, Sizes};
use crate::compress::way::{Unmade, Way};
use crate::files::identity::identity;
use crate::files::load::LoadedModel;
use crate::files::save::DataFile;
use crate::files::staging::Staging;
use crate::fit::calibrate::{Analyzed, calibrate, checksum};
use crate::fit::context::Context;
use crate::fit::reach::Reach;
use crate::fit::statistics::ModelStatistics;
use crate::measure::quality::Quality;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;

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
    /// The operators of the rewritten attentions.
    pub target: Target,
    /// The bytes of the cache, and the loss.
    pub point: Point,
    /// The measured quality.
    pub quality: Quality,
}

/// The results of a comparison.
#[derive(Debug, Default)]
pub struct Compared {
    /// The measurements; at least one.
    pub rows: Vec<WayMeasured>,
    /// The sizes whose ranks are not the requested ones.
    pub rounded: Vec<Rounded>,
    /// The methods that cannot be applied to the model.
    pub left_out: Vec<LeftOut>,
    /// The methods that are not tried with some of the requested bits.
    pub unmade: Vec<Unmade>,
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
    let unmade = Unmade::of(&request.ways, &request.bits);
    let wanted = request.ways.iter().flat_map(|&way| {
        let sizes = way.sizes(&request.ratios, &request.bits);
        sizes
            .into_iter()
            .map(move |(ratio, bits)| (way, ratio, bits))
    });
    let wanted: Vec<(Way, f64, CacheBits)> = wanted.collect();
    if wanted.is_empty() {
        return Err(CompressError::NoWay(unmade));
    }
    let analyses = Analyses::of(model)?;
    let context = Context::of(request.context, model).map_err(CompressError::long(model))?;
    // What cannot be rewritten is known before the text is read.
    let Sizes {
        rows: sizes,
        rounded,
        mut left_out,
    } = Sizes::plan(model, &analyses, context.positions, wanted.into_iter())?;
    if sizes.is_empty() && !left_out.is_empty() {
        return Err(left_out.swap_remove(0).cause.into());
    }
    let mut compared = Compared {
        rows: Vec::new(),
        rounded,
        left_out,
        unmade,
    };
    let (fitted, test) = texts(model, request)?;
    match (&request.statistics, &request.text, &fitted) {
        _ if request.takes_few_tokens => {}
        (Some(statistics), ..) => Reach::of(statistics).check()?,
        (None, Some(asked), Some(text)) => asked.check_reach(text, (model, &analyses.spelled))?,
        _ => {}
    }
    let test = test.in_sequences_of(context.positions);
    let inputs = request.inputs(model, (fitted.as_ref(), &test), context.positions)?;
    let mut kept = KeptRows::open(request.work.as_deref(), &inputs);
    let found = |size: &&Size| kept.find(size.way.name(), size.bits, size.ratio).is_some();
    let resumed = sizes.iter().filter(found).count();
    if resumed > 0 {
        steps(Stage::Resumed, observer)(resumed, sizes.len());
    }
    let made = match (&request.statistics, &fitted) {
        (Some(_), _) => None,
        (None, None) => return Err(CompressError::NoText),
        (None, Some(text)) => {
            let progress = &mut steps(Stage::Calibrating, observer);
            let subject = Analyzed {
                model,
                analysis: &analyses.spelled,
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
    // Leftovers of a killed run are removed by the next run.
    let scratch = std::env::temp_dir().join(format!("compare-{}", std::process::id()));
    let scratch = Staging::file(&scratch)?;
    let folder = scratch.path(Path::new(""));
    let destination = Destination {
        out: &folder,
        data: DataFile::Beside,
        work: None,
        checkpoint: PathBuf::new(),
    };
    for (at, size) in sizes.iter().enumerate() {
        let &Size {
            way, ratio, bits, ..
        } = size;
        let rank = size.rank();
        let quality = match kept.find(way.name(), bits, ratio) {
            Some((_, finished)) => finished,
            None => {
                let stage = Stage::Row { way, bits, rank };
                let (done, total) = (at + 1, sizes.len());
                observer(Event { stage, done, total });
                let reconstruction = fitted
                    .as_ref()
                    .zip(descent(request.reconstruction_steps, context.positions));
                let compressor = Compressor {
                    model,
                    analysis: analyses.for_form(size.options.form),
                    destination: &destination,
                    statistics: statistics.filter(|_| way != Way::Weights),
                    factorization: way.factorization(request.freq_fold),
                    reconstruction: reconstruction.filter(|_| way.reconstructs()),
                    runtime: &request.runtime,
                };
                let (_, quality) = compressor.measure(&size.options, &test, observer)?;
                let finished = (rank, quality);
                kept.keep((way.name(), bits, ratio), &finished)?;
                finished.1
            }
        };
        let made = WayMeasured {
            ratio,
            way,
            target: size.options.form.target(),
            point: Point::of(way.name(), bits, rank, &quality, None),
            quality,
        };
        row(&made);
        compared.rows.push(made);
    }
    kept.finish();
    Ok(compared)
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
    let test = test.first(request.test_tokens);
    Ok((Some(fitted.first(text.tokens)), test))
}
