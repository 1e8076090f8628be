//! Distillation of a rewritten model from its original, before the model is validated and measured.

use crate::compress::compressed::{Compressed, Distilled};
use crate::compress::compressor::Destination;
use crate::compress::error::CompressError;
use crate::compress::events::{Event, Observer, Stage};
use crate::files::interrupted::keep_file;
use crate::files::load::{LoadedModel, load};
use crate::measure::text::Text;
use crate::tune::decoder::lowered;
use crate::tune::run::{TrainProgress, TuneOptions, tune};
use crate::tune::samples::Samples;
use crate::tune::select::Trainable;

/// Tokens of a step, so that it takes seconds, and of a sequence if the model takes positions as inputs. Sequences of 4,096 tokens, read in chunks of as many, have a
/// lower perplexity and a higher KL after as many steps (docs/trials.md).
const LENGTH: usize = 512;
/// A text is cut into at least this many sequences, however long the context is.
const LEAST: usize = 4;

/// Trains the factors of `compressed` for `steps` steps on `text`, to match the next-token distribution of `original`, with
/// sequences within the first `context` positions: of [`LENGTH`] tokens at random positions, or as long as the context if the
/// model computes positions itself. The state is kept in the checkpoint of `destination`, so that a run that was stopped goes
/// on from there.
///
/// # Errors
/// [`CompressError`] if the model cannot be trained or written.
pub(super) fn distil(
    compressed: &mut Compressed,
    (original, destination): (&LoadedModel, &Destination),
    text: &Text,
    (steps, context): (usize, usize),
    observer: &mut Observer,
) -> Result<Distilled, CompressError> {
    let options = TuneOptions {
        trainable: Trainable::Factors,
        steps,
        rate: None,
        context,
        chunk: LENGTH,
        batch: 1,
        seed: 0,
    };
    let partial = &destination.checkpoint;
    let work = keep_file(partial);
    let mut student = load(&compressed.staged.path())?;
    let length = match lowered(&student)?.needs_long_sequences() {
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
    Ok(Distilled {
        steps: tuned.losses.len(),
        kl_before: tuned.checks.first().map_or(f64::NAN, |check| check.loss),
        kl_after: tuned.best.loss,
    })
}
