//! One model compressed as a request says: what cannot be done is refused first, then factors are fitted, a size is
//! found, the model is rewritten, and the result is validated and measured before it may have its name.

use gqa2mla_passes::pipeline::patches::RewrittenSite;
use gqa2mla_passes::{Decoupled, RewriteOptions};

use crate::compress::acceptance::{Held, Verdict, accepts};
use crate::compress::compressed::Compressed;
use crate::compress::compressor::{Compressor, Destination, analysis};
use crate::compress::error::CompressError;
use crate::compress::events::{Event, Observer, Stage, steps};
use crate::compress::request::{Request, TextRequest};
use crate::compress::search::{Search, search};
use crate::compress::widths::{Widths, WidthsCompared, better_widths};
use crate::files::load::LoadedModel;
use crate::fit::calibrate::calibrate;
use crate::fit::context::{Context, Source};
use crate::fit::factors::Factorization;
use crate::fit::layer_errors::{LayerError, layer_errors};
use crate::fit::reach::Reach;
use crate::fit::statistics::ModelStatistics;
use crate::measure::quality::Quality;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;
use crate::validate::ValidateError;
use crate::validate::ports::LanguageModel;
use crate::validate::proof::{ProofOptions, prove};
use crate::validate::scenario::Random;

/// Tokens of the text that nothing is fitted to, at most: what is lost is measured on them. They are never more than a
/// third of the text.
const HELD_OUT: usize = 8192;
/// Tokens that the errors of layers are measured on where no text is given.
const RANDOM_TOKENS: usize = 64;

/// A compressed model with all that was found out about it. It does not have its name yet.
pub struct Compression {
    /// The model.
    pub compressed: Compressed,
    /// The positions that its factors are made for.
    pub context: Context,
    /// How far the statistics carry that they were made from; `None` where they were not made from statistics.
    pub reach: Option<Reach>,
    /// How its size was found, if it was searched.
    pub search: Option<Search>,
    /// What both kinds of widths lose, if both were made.
    pub widths: Option<WidthsCompared>,
    /// What running both models showed.
    pub verdict: Verdict,
    /// What it loses on held-out text, or why that was not measured; `None` where there is nothing to lose or no text.
    pub quality: Option<Result<Quality, CompressError>>,
    /// Errors of each layer in the running models, where they were asked for, or why they were not measured.
    pub layer_errors: Option<Result<Vec<LayerError>, CompressError>>,
    /// Whether it may have its name.
    pub accepted: bool,
}

impl Compression {
    /// Whether the model is an approximation: some latent is narrower than the heads it stands for.
    #[must_use]
    pub fn is_lossy(&self) -> bool {
        is_lossy(&self.compressed.staged.rewritten.sites)
    }
}

/// Whether some latent is narrower than the heads it stands for.
#[must_use]
pub fn is_lossy(sites: &[RewrittenSite]) -> bool {
    sites.iter().any(|s| s.is_lossy)
}

/// Rewrites `model` into a folder beside its destination and looks at the result. The caller gives it its name with
/// [`Compressed::publish`], or keeps it aside with [`Compressed::reject`].
///
/// # Errors
/// [`CompressError`]; nothing is written then.
pub fn compress(
    model: &LoadedModel,
    destination: &Destination,
    request: &Request,
    observer: &mut Observer,
) -> Result<Compression, CompressError> {
    let made = attempt(model, destination, request, observer);
    if made.is_err() {
        // What a truncation leaves reads as zeros, and any refusal may come of that.
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
    request.check_widths()?;
    if let Some(proof) = request.proof.as_ref().filter(|p| p.tokens.is_some()) {
        proof.check_tokens(&LanguageModel::of(&model.model.proto)?)?;
    }
    let factorization = request.factorization();
    let context = Context::of(request.options.context, &model.path);
    let mut options = RewriteOptions {
        context: Some(context.positions),
        ..request.options.clone()
    };
    if matches!(factorization, Factorization::TransMla { .. }) {
        options.form = &Decoupled;
    }
    let analysis = analysis(model, &options)?;
    let mut compressor = Compressor {
        model,
        analysis: &analysis,
        destination,
        statistics: None,
        factorization,
        reconstruction: None,
        runtime: &request.runtime,
    };
    // What cannot be done at all is refused before a text is read.
    if !request.is_exact() {
        compressor.check(&options)?;
    }
    let texts = match &request.text {
        Some(text) => Texts::read(model, text, &context, request.is_exact())?,
        None => Texts::default(),
    };
    if request.promise.is_some() {
        covers(texts.held_out()?, &context)?;
    }
    let made = statistics(&compressor, request, texts.fitted.as_ref(), observer)?;
    if factorization != Factorization::Weights {
        compressor.statistics = request.statistics.as_ref().or(made.as_ref());
    }
    let reach = compressor.statistics.map(Reach::of);
    if let Some(reach) = reach.filter(Reach::is_too_short)
        && !request.takes_few_tokens
    {
        let tokens_a_direction = reach.tokens_a_direction;
        return Err(CompressError::FewTokens { tokens_a_direction });
    }
    let descent = request.descent(context.positions);
    compressor.reconstruction = texts.fitted.as_ref().zip(descent);
    let mut searched = None;
    if let Some(promise) = request.promise {
        let held_out = texts.held_out()?;
        let found = search(&compressor, &options, promise, held_out, observer)?;
        options.ranks = found.plan();
        searched = Some(found);
    }
    let (compressed, widths, quality) =
        rewritten(&compressor, &options, request, &texts, observer)?;
    let lossy = is_lossy(&compressed.staged.rewritten.sites);
    let verdict = match &request.proof {
        None => Verdict::NotValidated,
        Some(proof) => validated(model, &compressed, &request.runtime, proof, observer)?,
    };
    // A smaller latent is an approximation: its numbers are reported. Only an exact rewrite is held to a tolerance,
    // or one for which the caller gives it.
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
    let measured = quality.as_ref().and_then(|q| q.as_ref().ok());
    Ok(Compression {
        accepted: accepts(&verdict, held, request.promise, measured),
        layer_errors: request.measure_layers.then(|| {
            let tokens = texts.fitted.as_ref().and_then(|t| t.sequences().next());
            measured_layers(&compressor, &compressed, tokens)
        }),
        compressed,
        context,
        reach,
        search: searched,
        widths,
        verdict,
        quality,
    })
}

/// The text to fit factors to, and the one to measure on.
#[derive(Default)]
struct Texts {
    fitted: Option<Text>,
    held_out: Option<Text>,
}

impl Texts {
    /// Reads the text. An exact rewrite loses nothing that would have to be measured on a part of it.
    fn read(
        model: &LoadedModel,
        text: &TextRequest,
        context: &Context,
        is_exact: bool,
    ) -> Result<Self, CompressError> {
        let vocabulary = LanguageModel::of(&model.model.proto)?.vocabulary;
        let most = match context.source {
            Source::Asked => HELD_OUT.max(context.positions),
            _ => HELD_OUT,
        };
        let held_out = if is_exact { 0 } else { most };
        let wanted = text.tokens.saturating_add(held_out);
        let whole = Text::read(&text.source, vocabulary, wanted, text.length)?;
        // Too short a text is fitted to as a whole, and nothing can be promised on it.
        Ok(match whole.hold_out(most).filter(|_| !is_exact) {
            // What is lost depends on the position: it is measured up to the last that is served, or that there is.
            Some((fitted, held_out)) => Self {
                fitted: Some(fitted),
                held_out: Some(held_out.in_sequences_of(context.positions)),
            },
            None => Self {
                fitted: Some(whole),
                held_out: None,
            },
        })
    }

    fn held_out(&self) -> Result<&Text, CompressError> {
        let missing = match self.fitted {
            None => CompressError::NoText,
            Some(_) => CompressError::ShortText,
        };
        self.held_out.as_ref().ok_or(missing)
    }
}

/// A promise speaks of the positions that are measured. Those that were asked for have to be among them.
fn covers(held_out: &Text, context: &Context) -> Result<(), CompressError> {
    let (asked, length) = (context.positions, held_out.length);
    match context.source == Source::Asked && length < asked {
        true => Err(CompressError::ShortPromise { asked, length }),
        false => Ok(()),
    }
}

/// The statistics that the factorization needs and the request does not bring.
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
    let subject = compressor.subject();
    let made = calibrate(subject, text, compressor.runtime, None, progress);
    made.map(Some).map_err(|cause| compressor.unobserved(cause))
}

/// The rewritten model; with free widths also what both kinds of widths lose, and the quality of the one that is kept.
fn rewritten(
    compressor: &Compressor,
    options: &RewriteOptions,
    request: &Request,
    texts: &Texts,
    observer: &mut Observer,
) -> Result<(Compressed, Option<WidthsCompared>, Option<Quality>), CompressError> {
    if request.widths == Widths::Uniform {
        return Ok((compressor.rewrite(options, observer)?, None, None));
    }
    let held_out = texts.held_out()?;
    let fitted = texts.fitted.as_ref().ok_or(CompressError::NoText)?;
    let (made, compared, quality) =
        better_widths(compressor, options, (fitted, held_out), observer)?;
    Ok((made, Some(compared), Some(quality)))
}

/// Runs both models. Trouble that is not the rewritten model's proves nothing and is an error.
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

/// The errors of each layer, on `tokens` or else on random ones.
fn measured_layers(
    compressor: &Compressor,
    compressed: &Compressed,
    tokens: Option<&[i64]>,
) -> Result<Vec<LayerError>, CompressError> {
    let known = LanguageModel::of(&compressor.model.model.proto)?;
    let mut random = Random::new(0);
    let vocabulary = known.vocabulary.max(1) as u64;
    let drawn: Vec<i64> = (0..RANDOM_TOKENS)
        .map(|_| (random.next_u64() % vocabulary) as i64)
        .collect();
    let tokens = tokens.unwrap_or(&drawn);
    let rewritten = compressed.written()?;
    let errors = layer_errors(compressor.subject(), rewritten, tokens, compressor.runtime);
    errors.map_err(|cause| compressor.unobserved(cause))
}
