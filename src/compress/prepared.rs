//! A request that has been checked for a model, with the texts for fitting and measuring.

use std::path::{Path, PathBuf};

use serde::Serialize;

use gqa2mla_passes::forms::{CachedKeys, FormError};
use gqa2mla_passes::pipeline::Planned;
use gqa2mla_passes::{Analysis, Decoupled, RewriteError, RewriteOptions};

#[cfg(feature = "train")]
use crate::compress::blank::without_weights;
use crate::compress::compressor::{analysis, planned};
use crate::compress::convert::ConvertError;
#[cfg(feature = "train")]
use crate::compress::distill::check_distilled;
use crate::compress::error::CompressError;
use crate::compress::request::{Request, TextRequest};
use crate::files::load::LoadedModel;
use crate::fit::context::{Context, ContextSource};
use crate::fit::factors::Factorization;
use crate::measure::text::{Text, TextSource};
use crate::validate::ports::LanguageModel;
use crate::validate::{ValidateError, Which};

/// Largest number of held-out tokens, on which the loss is measured. Never more than a third of the text.
const HELD_OUT: usize = 8192;

/// The data of a compression that is available before factors are computed.
pub(super) struct Prepared<'f> {
    /// The target context.
    pub context: Context,
    /// The options of the rewrite, with that context.
    pub options: RewriteOptions<'f>,
    /// The analysis of the model for those options.
    pub analysis: Analysis,
    /// The texts.
    pub texts: Texts,
}

impl<'f> Prepared<'f> {
    /// Checks `request` against `model`, and reads its text.
    ///
    /// # Errors
    /// [`CompressError`] if the text cannot be read or the request does not fit the model.
    pub fn of(model: &LoadedModel, request: &Request<'f>) -> Result<Self, CompressError> {
        request.check_widths()?;
        if !request.runtime.given.is_empty() {
            let subject = LanguageModel::of(&model.model.proto)?;
            let fed = subject.interface.fed(&request.runtime.given);
            fed.map_err(|cause| ValidateError::Open {
                which: Which::Original,
                path: model.path.display().to_string(),
                cause: Box::new(cause),
            })?;
        }
        if let Some(proof) = request.proof.as_ref().filter(|p| p.tokens.is_some()) {
            proof.check_tokens(&LanguageModel::of(&model.model.proto)?)?;
        }
        let (context, options) = options(model, request)?;
        let analysis = analysis(model, &options)?;
        // This check comes before the text is read. An exact rewrite is checked by the rewrite itself.
        if !request.is_exact() {
            let planned = planned(model, &analysis, &options)?;
            if request.has_data() && request.factorization() != Factorization::Weights {
                check_recorded(model, &planned, &options)?;
            }
        }
        #[cfg(feature = "train")]
        if request.distillation_steps > 0 {
            // The size that a search will find is not known.
            let is_known = request.promise.is_none();
            let made = || without_weights(model, &analysis, &options, request.factorization());
            let draft = is_known.then(made).transpose()?;
            check_distilled(model, draft.as_ref())?;
        }
        // What the model excludes comes first, so that a text is not asked for in vain.
        request.check_bits()?;
        let texts = match &request.text {
            Some(text) => Texts::read(model, text, &context, request.is_exact())?,
            None => Texts::default(),
        };
        request.check_reach(texts.fitted.as_ref(), (model, &analysis))?;
        if request.promise.is_some() {
            covers(texts.held_out()?, &context)?;
        }
        Ok(Self {
            context,
            options,
            analysis,
            texts,
        })
    }
}

/// The target context for `model`, and the options of its rewrite, with that context and the form of the factorization.
///
/// # Errors
/// [`CompressError`] if the context is too long for the model.
pub(super) fn options<'f>(
    model: &LoadedModel,
    request: &Request<'f>,
) -> Result<(Context, RewriteOptions<'f>), CompressError> {
    let context = Context::of(request.options.context, model);
    let context = context.map_err(CompressError::long(model))?;
    let mut options = RewriteOptions {
        context: Some(context.positions),
        ..request.options.clone()
    };
    if matches!(request.factorization(), Factorization::TransMla { .. }) {
        options.form = &Decoupled;
    }
    Ok((context, options))
}

/// Refuses a form whose factors need keys before rotation where these cannot be recorded.
pub(super) fn check_recorded(
    model: &LoadedModel,
    planned: &[Planned],
    options: &RewriteOptions,
) -> Result<(), CompressError> {
    let needs = options.form.cached_keys() == CachedKeys::WithValues;
    let hidden = |p: &&Planned| p.site.within.is_some();
    match planned.iter().filter(|_| needs).find(hidden) {
        None => Ok(()),
        Some(hidden) => {
            let cause = FormError::missing(
                "its keys before rotation stand in a branch, where they cannot be recorded; export the decoder with a past by itself, without merging",
            );
            let cause = RewriteError::form(hidden.site.layer, options.form, cause);
            Err(ConvertError::of(model, cause).into())
        }
    }
}

/// The text of a compression, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsedText {
    /// The files of the text or of its token ids.
    pub files: Vec<PathBuf>,
    /// Number of tokens for fitting.
    pub fitted: usize,
    /// Tokens of one sequence for fitting.
    pub length: usize,
    /// Number of held-out tokens.
    pub held_out: usize,
}

/// The part of the text for fitting, and the held-out part for measuring.
#[derive(Default)]
pub(super) struct Texts {
    /// The text for fitting.
    pub fitted: Option<Text>,
    /// The text for measuring.
    pub held_out: Option<Text>,
}

impl Texts {
    /// Reads and divides the text. For an exact rewrite nothing is held out, because there is no loss to measure.
    fn read(
        model: &LoadedModel,
        text: &TextRequest,
        context: &Context,
        is_exact: bool,
    ) -> Result<Self, CompressError> {
        let most = match context.source {
            ContextSource::Asked => HELD_OUT.max(context.positions),
            _ => HELD_OUT,
        };
        let held_out = if is_exact { 0 } else { most };
        let wanted = text.tokens.saturating_add(held_out);
        let whole = text.read(model, wanted)?;
        // A text that is too short to be divided is used for fitting only.
        Ok(match whole.hold_out(most).filter(|_| !is_exact) {
            // The loss depends on the position, so it is measured on sequences as long as the target context, if the
            // text permits.
            Some((fitted, held_out)) => Self {
                fitted: Some(fitted.first(text.tokens)),
                held_out: Some(held_out.in_sequences_of(context.positions)),
            },
            None => Self {
                fitted: Some(whole),
                held_out: None,
            },
        })
    }

    /// The sizes of the texts, which were read from `source`; `None` if nothing was read.
    pub fn used(&self, source: &TextSource) -> Option<UsedText> {
        let fitted = self.fitted.as_ref()?;
        Some(UsedText {
            files: source.files().map(Path::to_path_buf).collect(),
            fitted: fitted.ids.len(),
            length: fitted.length,
            held_out: self.held_out.as_ref().map_or(0, |text| text.ids.len()),
        })
    }

    /// The held-out text.
    ///
    /// # Errors
    /// [`CompressError`] if there is none.
    pub fn held_out(&self) -> Result<&Text, CompressError> {
        let missing = match self.fitted {
            None => CompressError::NoText,
            Some(_) => CompressError::ShortText,
        };
        self.held_out.as_ref().ok_or(missing)
    }
}

/// Checks that held-out sequences are as long as a requested context, because a promise only covers measured positions.
fn covers(held_out: &Text, context: &Context) -> Result<(), CompressError> {
    let (asked, length) = (context.positions, held_out.length);
    match context.source == ContextSource::Asked && length < asked {
        true => Err(CompressError::ShortPromise { asked, length }),
        false => Ok(()),
    }
}
