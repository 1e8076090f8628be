//! What a smaller cache costs on real text: perplexity, KL and top-1 agreement of two models that read the same tokens.
//!
//! A sequence is read in chunks, and each chunk attends to the cache that the ones before have left.

use std::num::NonZero;
use std::thread;

use serde::Serialize;

use crate::measure::text::Text;
use crate::runtime::Session;
use crate::runtime::tensor::{Data, Tensor};
use crate::validate::ValidateError;
use crate::validate::interface::Interface;
use crate::validate::runner::Runner;

/// Tokens that are read at once: the logits of this many positions are in memory together.
const CHUNK: usize = 256;

/// A model as this module needs it.
pub struct Reader<'a> {
    /// Where it runs.
    pub session: &'a mut dyn Session,
    /// Its inputs and outputs.
    pub interface: &'a Interface,
}

/// Two models on one text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quality {
    /// Tokens that were predicted.
    pub tokens: usize,
    /// `exp` of the original's mean negative log-likelihood.
    pub original_perplexity: f64,
    /// The same of the rewritten model.
    pub rewritten_perplexity: f64,
    /// Mean of KL(original || rewritten) of the next-token distribution, in nats.
    pub mean_kl: f64,
    /// Share of positions at which both hold the same token the likeliest.
    pub top1_agreement: f64,
    /// Bytes that a token took in the original's caches.
    pub original_cache_bytes: f64,
    /// And in the rewritten model's.
    pub rewritten_cache_bytes: f64,
}

impl Quality {
    /// How much higher the rewritten model's perplexity is, as a share of the original's.
    #[must_use]
    pub fn increase(&self) -> f64 {
        self.rewritten_perplexity / self.original_perplexity - 1.0
    }
}

/// What one position says.
#[derive(Clone, Copy, Default)]
struct Position {
    original_loss: f64,
    rewritten_loss: f64,
    kl: f64,
    same: bool,
}

/// Perplexity of one model on `text`.
///
/// # Errors
/// [`ValidateError`] when the model fails, or its logits are not finite.
pub fn perplexity(
    model: Reader,
    text: &Text,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<f64, ValidateError> {
    let mut runner = Runner::new(model.session, model.interface)?;
    let mut losses = Vec::new();
    let total = text.sequences().len();
    for (number, tokens) in text.sequences().enumerate() {
        progress(number, total);
        runner.start(&[0])?;
        for (chunk, targets) in chunks(tokens, model.interface) {
            let logits = runner.step(chunk, chunk.len())?.into_f32();
            let rows = rows(&logits, targets)?;
            losses.extend(in_parallel(&rows, &|&(row, target): &(&[f32], i64)| {
                loss(row, target)
            }));
        }
    }
    progress(total, total);
    finite(mean(&losses).exp())
}

/// Reads `text` with both models in lock-step. `progress` is told how many sequences of how many are read.
///
/// # Errors
/// [`ValidateError`] when a model fails, their logits differ in shape, or are not finite.
pub fn compare(
    original: Reader,
    rewritten: Reader,
    text: &Text,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Quality, ValidateError> {
    let interface = original.interface;
    let mut before = Runner::new(original.session, original.interface)?;
    let mut after = Runner::new(rewritten.session, rewritten.interface)?;
    let mut seen: Vec<Position> = Vec::new();
    let total = text.sequences().len();
    for (number, tokens) in text.sequences().enumerate() {
        progress(number, total);
        before.start(&[0])?;
        after.start(&[0])?;
        for (chunk, targets) in chunks(tokens, interface) {
            let p = before.step(chunk, chunk.len())?.into_f32();
            let q = after.step(chunk, chunk.len())?.into_f32();
            if p.shape != q.shape {
                return Err(ValidateError::Logits {
                    step: format!("sequence {}", number + 1),
                    original: p.shape.clone(),
                    rewritten: q.shape.clone(),
                });
            }
            let (p, q) = (rows(&p, targets)?, rows(&q, targets)?);
            let pairs: Vec<_> = p.into_iter().zip(q).collect();
            seen.extend(in_parallel(&pairs, &|&((p, target), (q, _))| {
                position(p, q, target)
            }));
        }
    }
    progress(total, total);
    let of = |value: fn(&Position) -> f64| mean(&seen.iter().map(value).collect::<Vec<_>>());
    Ok(Quality {
        tokens: seen.len(),
        original_perplexity: finite(of(|p| p.original_loss).exp())?,
        rewritten_perplexity: finite(of(|p| p.rewritten_loss).exp())?,
        mean_kl: of(|p| p.kl),
        top1_agreement: of(|p| f64::from(u8::from(p.same))),
        original_cache_bytes: before.cache_bytes_per_token(),
        rewritten_cache_bytes: after.cache_bytes_per_token(),
    })
}

/// The chunks of one sequence, each with the tokens that follow its positions; the last position has none.
fn chunks<'t>(
    tokens: &'t [i64],
    interface: &Interface,
) -> impl Iterator<Item = (&'t [i64], &'t [i64])> {
    // Without a cache nothing can follow the first chunk.
    let size = if interface.caches.is_empty() {
        tokens.len().max(1)
    } else {
        CHUNK
    };
    tokens.chunks(size).enumerate().map(move |(number, chunk)| {
        let first = number * size + 1;
        let last = (first + chunk.len()).min(tokens.len());
        (chunk, tokens.get(first..last).unwrap_or_default())
    })
}

/// The logits of each position that has a next token, with that token.
fn rows<'l>(logits: &'l Tensor, targets: &[i64]) -> Result<Vec<(&'l [f32], i64)>, ValidateError> {
    let [1, _, vocabulary] = *logits.shape.as_slice() else {
        return Err(ValidateError::Interface(format!(
            "logits have shape {:?}, expected [1, tokens, vocabulary]",
            logits.shape
        )));
    };
    let Data::F32(values) = &logits.data else {
        return Err(ValidateError::Interface("logits are not fp32".to_owned()));
    };
    let rows = values.chunks_exact(vocabulary.max(1));
    if rows.len() < targets.len() {
        return Err(ValidateError::Interface(format!(
            "the model gives logits for {} of {} positions: text is scored at every position",
            rows.len(),
            targets.len()
        )));
    }
    Ok(rows.zip(targets.iter().copied()).collect())
}

/// `log sum exp` of `row`, and its largest element.
fn log_sum(row: &[f32]) -> (f64, f32) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from((x - largest).exp())).sum();
    (f64::from(largest) + sum.ln(), largest)
}

fn logit(row: &[f32], token: i64) -> f64 {
    let at = usize::try_from(token).ok();
    at.and_then(|at| row.get(at))
        .map_or(f64::NAN, |&x| f64::from(x))
}

/// Negative log-likelihood of `target`.
fn loss(row: &[f32], target: i64) -> f64 {
    log_sum(row).0 - logit(row, target)
}

fn position(p: &[f32], q: &[f32], target: i64) -> Position {
    let ((p_sum, p_largest), (q_sum, q_largest)) = (log_sum(p), log_sum(q));
    let kl = p.iter().zip(q).map(|(&x, &y)| {
        let (x, y) = (f64::from(x) - p_sum, f64::from(y) - q_sum);
        // What the original all but excludes says nothing: x e^x vanishes below this.
        if x < -40.0 {
            0.0
        } else {
            f64::from((x as f32).exp()) * (x - y)
        }
    });
    let first = |row: &[f32], largest: f32| row.iter().position(|&x| x == largest);
    Position {
        original_loss: p_sum - logit(p, target),
        rewritten_loss: q_sum - logit(q, target),
        kl: kl.sum(),
        same: first(p, p_largest) == first(q, q_largest),
    }
}

/// `of` every item, in order, on as many threads as there are: each item is worked on alone, so the results do not
/// depend on their number.
fn in_parallel<I: Sync, O: Send + Default + Clone>(
    items: &[I],
    of: &(dyn Fn(&I) -> O + Sync),
) -> Vec<O> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = items.len().div_ceil(threads).max(1);
    let mut results = vec![O::default(); items.len()];
    thread::scope(|scope| {
        for (items, results) in items.chunks(share).zip(results.chunks_mut(share)) {
            scope.spawn(move || {
                items
                    .iter()
                    .zip(results)
                    .for_each(|(item, result)| *result = of(item));
            });
        }
    });
    results
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn finite(value: f64) -> Result<f64, ValidateError> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(ValidateError::Interface(
        "the perplexity is not finite: the model overflows on this text".to_owned(),
    ))
}
