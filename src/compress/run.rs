//! The compression of one model: checks of the request, calibration, search for a rank, rewrite, validation and
//! measurement, acceptance.

use gqa2mla_passes::factor::CacheBits;
use gqa2mla_passes::pipeline::patches::RewrittenSite;
use gqa2mla_passes::{RankPlan, RewriteOptions};

use crate::compress::acceptance::{Held, Verdict, accepts};
use crate::compress::allot::Sides;
use crate::compress::compressed::Compressed;
use crate::compress::compressor::{Compressor, Destination, analysis};
#[cfg(feature = "train")]
use crate::compress::distill::{DistillRequest, distil};
use crate::compress::error::CompressError;
use crate::compress::events::{Event, Observer, Stage, steps};
use crate::compress::prepared::{Prepared, Texts, UsedText};
use crate::compress::promise::Promise;
use crate::compress::request::Request;
use crate::compress::search::{Search, Searcher};
use crate::compress::widths::{Widths, WidthsCompared, better_widths};
use crate::files::load::LoadedModel;
use crate::fit::calibrate::{Analyzed, calibrate};
use crate::fit::context::Context;
use crate::fit::factors::Factorization;
use crate::fit::layer_errors::{LayerError, layer_errors};
use crate::fit::reach::Reach;
use crate::fit::statistics::ModelStatistics;
use crate::measure::continuation::{Continuation, continued};
use crate::measure::quality::Quality;
use crate::measure::text::{Text, TextSource};
use crate::runtime::RuntimeOptions;
#[cfg(feature = "train")]
use crate::tune::decoder::check_branches;
use crate::validate::ValidateError;
use crate::validate::ports::LanguageModel;
use crate::validate::proof::{ProofOptions, prove};
use crate::validate::scenario::Random;

/// Number of random tokens for the errors of layers if there is no text.
const RANDOM_TOKENS: usize = 64;
/// Largest mean KL on held-out text, in nats, of a rewrite at full rank that only rounds the cache to `bits`. On a
/// trained model, rounding to 8 bits costs 0.001 nats, to 6 bits 0.01 and to 4 bits 0.1. A much larger KL means that
/// the scales do not fit the text.
fn rounded_kl(bits: CacheBits) -> f64 {
    match bits {
        CacheBits::Four => 0.5,
        CacheBits::Six => 0.1,
        CacheBits::Eight | CacheBits::Model => 0.05,
    }
}

/// A compressed model with all results. It is not published yet.
pub struct Compression {
    /// The staged model.
    pub compressed: Compressed,
    /// The target context of its factors.
    pub context: Context,
    /// The coverage of the statistics; `None` if the factors are computed from weights.
    pub reach: Option<Reach>,
    /// The search for bits and rank, if a promise was requested.
    pub search: Option<Search>,
    /// The losses of uniform and separate ranks, if both were tried.
    pub widths: Option<WidthsCompared>,
    /// The result of the validation.
    pub verdict: Verdict,
    /// Its quality on held-out text, or the error of the measurement; `None` if the rewrite is exact or there is no
    /// text.
    pub quality: Option<Result<Quality, CompressError>>,
    /// The errors of each layer, if requested, or the error of their measurement.
    pub layer_errors: Option<Result<Vec<LayerError>, CompressError>>,
    /// The continuation of a prompt by both models, if requested and there is a text, or the error of the runs.
    pub continuation: Option<Result<Continuation, CompressError>>,
    /// The text, if one was read.
    pub text: Option<UsedText>,
    /// Whether the model is accepted and should be published.
    pub accepted: bool,
}

impl Compression {
    /// Whether the model is an approximation: a rank is below the lossless one, or cached numbers are rounded.
    #[must_use]
    pub fn is_lossy(&self) -> bool {
        is_lossy(&self.compressed.staged.rewritten.sites)
    }
}

/// Whether a rewrite of `sites` is an approximation: a rank is below the lossless one, or cached numbers are rounded.
#[must_use]
pub fn is_lossy(sites: &[RewrittenSite]) -> bool {
    sites.iter().any(RewrittenSite::loses)
}

/// Compresses `model` into a staging folder beside its destination, and validates and measures the result. The caller
/// then publishes it with [`Compressed::publish`], or moves it aside with [`Compressed::reject`].
///
/// # Errors
/// [`CompressError`]. Nothing is written to the output path then.
pub fn compress(
    model: &LoadedModel,
    destination: &Destination,
    request: &Request,
    observer: &mut Observer,
) -> Result<Compression, CompressError> {
    let made = attempt(model, destination, request, observer);
    if made.is_err() {
        // A file that was truncated while mapped reads as zeros, which may be the true cause of the error.
        model.check().map_err(CompressError::Input)?;
    }
    made
}

fn attempt(
    model: &LoadedModel,
    destination: &Destination,
    request: &Request,
    observer: &mut Observer,
) -> Result<Compression, CompressError> {
    let Prepared {
        context,
        mut options,
        analysis,
        texts,
    } = Prepared::of(model, request)?;
    let factorization = request.factorization();
    let mut compressor = Compressor {
        model,
        analysis: &analysis,
        destination,
        statistics: None,
        factorization,
        reconstruction: None,
        runtime: &request.runtime,
    };
    #[cfg(feature = "train")]
    if let (Some(text), true) = (&texts.fitted, request.distillation_steps > 0) {
        check_branches(model, &text.ids, &request.runtime.given)?;
    }
    let made = statistics(&compressor, request, texts.fitted.as_ref(), observer)?;
    if factorization != Factorization::Weights {
        compressor.statistics = request.statistics.as_ref().or(made.as_ref());
    }
    let reach = compressor.statistics.map(Reach::of);
    let descent = request.descent(context.positions);
    compressor.reconstruction = texts.fitted.as_ref().zip(descent);
    let mut searched = None;
    if let Some(promise) = request.promise {
        let held_out = texts.held_out()?;
        let searcher = Searcher {
            compressor: &compressor,
            options: &options,
            promise,
            held_out,
            rounds: request.searches_bits && request.scales_are_known(),
            observer: &mut *observer,
        };
        let found = searcher.search()?;
        options = match found.best {
            Some(size) => size.in_options(&options),
            None => RewriteOptions {
                ranks: RankPlan::Full,
                ..options
            },
        };
        searched = Some(found);
    }
    let made = rewritten(&compressor, &options, request, &texts, observer)?;
    #[cfg(feature = "train")]
    let made = distilled(made, &compressor, request, (&texts, &context), observer)?;
    let (compressed, widths, quality) = made;
    let lossy = is_lossy(&compressed.staged.rewritten.sites);
    let verdict = match &request.proof {
        None => Verdict::NotValidated,
        Some(proof) => validated(model, &compressed, &request.runtime, proof, observer)?,
    };
    // An approximation is reported with its loss. The logits on random tokens must be within a tolerance only for an
    // exact rewrite, or if the caller sets the tolerance: random tokens exceed the range of integers that a text
    // showed.
    let has_tolerance = request
        .proof
        .as_ref()
        .is_some_and(|p| p.tolerance.is_some());
    let held = match lossy && !has_tolerance {
        true => Held::ToFinite,
        false => Held::ToTolerance,
    };
    let runs = accepts(&verdict, held, None, None);
    let wanted = runs && lossy && request.proof.is_some() && quality.is_none();
    let quality = quality.map(Ok).or_else(|| {
        let text = texts.held_out.as_ref().filter(|_| wanted)?;
        Some(compressed.quality(model, text, &request.runtime, observer))
    });
    let measured = quality.as_ref().map(Result::as_ref);
    let narrow = compressed
        .staged
        .rewritten
        .sites
        .iter()
        .any(|s| s.is_narrow);
    let rounding = (lossy && !narrow).then_some(Promise::Kl(rounded_kl(options.bits)));
    let promise = request.promise.or(rounding);
    Ok(Compression {
        accepted: accepts(&verdict, held, promise, measured),
        layer_errors: request.in_detail.then(|| {
            let tokens = texts.fitted.as_ref().and_then(|t| t.sequences().next());
            measured_layers(&compressor, &compressed, tokens, observer)
        }),
        continuation: text_of(request, &texts)
            .filter(|_| runs && request.in_detail)
            .map(|(text, source)| continuation(&compressor, &compressed, text, source, observer)),
        text: request
            .text
            .as_ref()
            .and_then(|text| texts.used(&text.source)),
        compressed,
        context,
        reach,
        search: searched,
        widths,
        verdict,
        quality,
    })
}

/// Computes the statistics if the factorization needs them and the request has none.
fn statistics(
    compressor: &Compressor,
    request: &Request,
    text: Option<&Text>,
    observer: &mut Observer,
) -> Result<Option<ModelStatistics>, CompressError> {
    if compressor.factorization == Factorization::Weights || request.statistics.is_some() {
        return Ok(None);
    }
    let text = text.ok_or(CompressError::NoText)?;
    let progress = &mut steps(Stage::Calibrating, observer);
    // The analysis with operators expanded, because the rotation inside an operator that computes positions itself is
    // not recognised.
    let spelled = analysis(compressor.model, &RewriteOptions::default())?;
    let subject = Analyzed {
        model: compressor.model,
        analysis: &spelled,
    };
    let made = calibrate(subject, text, compressor.runtime, None, progress);
    made.map(Some).map_err(|cause| compressor.unobserved(cause))
}

/// Rewrites the model. With separate ranks, also returns the losses of uniform and separate ranks, and the quality of
/// the better model.
fn rewritten(
    compressor: &Compressor,
    options: &RewriteOptions,
    request: &Request,
    texts: &Texts,
    observer: &mut Observer,
) -> Result<Made, CompressError> {
    if request.widths == Widths::Uniform {
        return Ok((compressor.rewrite(options, observer)?, None, None));
    }
    let held_out = texts.held_out()?;
    let fitted = texts.fitted.as_ref().ok_or(CompressError::NoText)?;
    let sides = match request.widths {
        Widths::FreeLayers => Sides::Alike,
        _ => Sides::Apart,
    };
    let (made, compared, quality) =
        better_widths(compressor, options, sides, (fitted, held_out), observer)?;
    Ok((made, Some(compared), Some(quality)))
}

/// A rewritten model, the comparison of its widths, and its quality if it is known.
type Made = (Compressed, Option<WidthsCompared>, Option<Quality>);

/// Distils the rewritten model from the original, if this is requested: its quality is unknown then.
#[cfg(feature = "train")]
fn distilled(
    (mut compressed, widths, quality): Made,
    compressor: &Compressor,
    request: &Request,
    (texts, context): (&Texts, &Context),
    observer: &mut Observer,
) -> Result<Made, CompressError> {
    if request.distillation_steps == 0 {
        return Ok((compressed, widths, quality));
    }
    let text = texts.fitted.as_ref().ok_or(CompressError::NoText)?;
    let models = (compressor.model, compressor.destination);
    let asked = DistillRequest {
        steps: request.distillation_steps,
        context: context.positions,
        given: &request.runtime.given,
    };
    match distil(&mut compressed, models, text, asked, observer)? {
        Some(distilled) => {
            compressed.distilled = Some(distilled);
            Ok((compressed, widths, None))
        }
        None => {
            compressed.has_no_factors = true;
            Ok((compressed, widths, quality))
        }
    }
}

/// Validates by running both models. Failures that the rewritten model does not cause are errors, not verdicts.
fn validated(
    original: &LoadedModel,
    compressed: &Compressed,
    runtime: &RuntimeOptions,
    proof: &ProofOptions,
    observer: &mut Observer,
) -> Result<Verdict, CompressError> {
    let progress = &mut |optimized, done, total| {
        let stage = match optimized {
            false => Stage::Validating,
            true => Stage::ValidatingOptimized,
        };
        observer(Event { stage, done, total });
    };
    match prove(original, compressed.written()?, runtime, proof, progress) {
        Ok(proof) => Ok(Verdict::Compared(proof)),
        Err(error) if error.is_about_the_rewritten() => Ok(Verdict::DoesNotRun(error.to_string())),
        Err(error @ ValidateError::Token { .. }) => Err(error.into()),
        Err(error) => Err(CompressError::CannotRun(error)),
    }
}

/// The text whose beginning is continued, and its source: held-out text, if there is any.
fn text_of<'t>(request: &'t Request, texts: &'t Texts) -> Option<(&'t Text, &'t TextSource)> {
    let text = texts.held_out.as_ref().or(texts.fitted.as_ref());
    text.zip(request.text.as_ref().map(|text| &text.source))
}

/// The continuation of the beginning of `text`.
fn continuation(
    compressor: &Compressor,
    compressed: &Compressed,
    text: &Text,
    source: &TextSource,
    observer: &mut Observer,
) -> Result<Continuation, CompressError> {
    let mut progress = steps(Stage::Continuing, observer);
    progress(0, 1);
    let (model, runtime) = (compressor.model, compressor.runtime);
    let tokens = text.sequences().next().unwrap_or_default();
    let made = continued(model, compressed.written()?, tokens, source, runtime)?;
    progress(1, 1);
    Ok(made)
}

/// The errors of each layer on `tokens`, or on random tokens.
fn measured_layers(
    compressor: &Compressor,
    compressed: &Compressed,
    tokens: Option<&[i64]>,
    observer: &mut Observer,
) -> Result<Vec<LayerError>, CompressError> {
    let known = LanguageModel::of(&compressor.model.model.proto)?;
    let mut random = Random::new(0);
    let vocabulary = known.vocabulary.max(1) as u64;
    let drawn: Vec<i64> = (0..RANDOM_TOKENS)
        .map(|_| (random.next_u64() % vocabulary) as i64)
        .collect();
    let tokens = tokens.unwrap_or(&drawn);
    let rewritten = compressed.written()?;
    let progress = &mut steps(Stage::MeasuringLayers, observer);
    let (subject, runtime) = (compressor.subject(), compressor.runtime);
    let errors = layer_errors(subject, rewritten, tokens, runtime, progress);
    errors.map_err(|cause| compressor.unobserved(cause))
}
