//! Distillation of a rewritten model from its original, before the model is validated and measured.

use crate::compress::compressed::{Compressed, Distilled};
use crate::compress::compressor::Destination;
use crate::compress::error::CompressError;
use crate::compress::events::{Event, Observer, Stage};
use crate::files::interrupted::keep_file;
use crate::files::load::{LoadedModel, load};
use crate::measure::text::Text;
use crate::runtime::given::GivenInput;
use crate::tune::TuneError;
use crate::tune::decoder::{check_operators, lowered};
use crate::tune::run::{TrainProgress, TuneOptions, tune};
use crate::tune::samples::Samples;
use crate::tune::select::{Trainable, factors};

/// Tokens of a step, so that it takes seconds, and of a sequence if the model takes positions as inputs. Sequences of 4,096
/// tokens, read in chunks of as many, have a lower perplexity and a higher KL after as many steps (docs/trials.md).
const LENGTH: usize = 512;
/// A text is cut into at least this many sequences, however long the context is.
const LEAST: usize = 4;

/// The options of a distillation.
pub(super) struct DistillRequest<'r> {
    /// Number of steps.
    pub steps: usize,
    /// Target context length in tokens.
    pub context: usize,
    /// Values of inputs that are the same in every run.
    pub given: &'r [GivenInput],
}

/// Checks whether `model` can be read for training, and whether the rewrite `draft` of it, whose weights are blank, has factors
/// that can be trained.
///
/// # Errors
/// [`CompressError`] that names what cannot be trained.
pub(super) fn check_distilled(
    model: &LoadedModel,
    draft: Option<&LoadedModel>,
) -> Result<(), CompressError> {
    check_operators(model, &lowered(model)?, &[])?;
    let Some(draft) = draft else {
        return Ok(());
    };
    let graph = lowered(draft)?;
    let trained = factors(&graph.main);
    if trained.is_empty() {
        return Err(TuneError::Nothing {
            path: model.path.display().to_string(),
            detail: "at this size the rewrite has no factors to train: it keeps every number, or rounds heads as they are; leave out --distill, or give a smaller --cache-ratio".to_owned(),
        }
        .into());
    }
    Ok(check_operators(draft, &graph, &trained)?)
}

/// Trains the factors of `compressed` for a number of steps on `text`, to match the next-token distribution of `original`, with
/// sequences within the first `context` positions: of [`LENGTH`] tokens at random positions, or as long as the context if the
/// model computes positions itself. The state is kept in the checkpoint of `destination`, so that a run that was stopped goes
/// on from there. `None` if it has no factors, because a search for a limit of the loss has found none that keep it.
///
/// # Errors
/// [`CompressError`] if the model cannot be trained or written.
pub(super) fn distil(
    compressed: &mut Compressed,
    (original, destination): (&LoadedModel, &Destination),
    text: &Text,
    request: DistillRequest,
    observer: &mut Observer,
) -> Result<Option<Distilled>, CompressError> {
    let DistillRequest {
        steps,
        context,
        given,
    } = request;
    let options = TuneOptions {
        trainable: Trainable::Factors,
        steps,
        rate: None,
        context,
        chunk: LENGTH,
        batch: 1,
        seed: 0,
        given: given.to_vec(),
    };
    let partial = &destination.checkpoint;
    let work = keep_file(partial);
    let mut student = load(&compressed.staged.path())?;
    let graph = lowered(&student)?;
    if factors(&graph.main).is_empty() {
        work.remove();
        return Ok(None);
    }
    let length = match graph.needs_long_sequences() {
        true => context.min(text.ids.len() / LEAST).max(LENGTH),
        false => LENGTH,
    };
    let text = text.clone().in_sequences_of(length);
    let samples = Samples::of_text(&text).ok_or(CompressError::ShortText)?;
    let mut progress = |at: TrainProgress| {
        let loss = at.best.unwrap_or(f64::NAN);
        let (stage, done, total) = (Stage::Distilling { loss }, at.step, at.steps);
        observer(Event { stage, done, total });
    };
    let teacher = Some(original);
    let tuned = tune(
        &mut student,
        teacher,
        &samples,
        &options,
        partial,
        &mut progress,
    )?;
    if tuned.best.step > 0 {
        compressed.replace(&student, &destination.data)?;
    }
    work.remove();
    Ok(Some(Distilled {
        steps: tuned.losses.len(),
        kl_before: tuned.checks.first().map_or(f64::NAN, |check| check.loss),
        kl_after: tuned.best.loss,
    }))
}
