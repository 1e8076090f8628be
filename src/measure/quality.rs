//! Quality on text: perplexity, KL divergence and top-1 agreement of two models on the same tokens.
//!
//! A sequence is processed in chunks, each with the cache of the previous ones. The loss by a smaller cache depends on
//! the position, so all figures are also computed for ranges of positions.

use std::num::NonZero;
use std::ops::Range;
use std::thread;

use gqa2mla_passes::forms::ExactTokens;
use serde::Serialize;

use crate::measure::logits::{Prediction, loss, rows};
use crate::measure::text::Text;
use crate::runtime::Session;
use crate::runtime::tensor::{Data, Tensor};
use crate::validate::ValidateError;
use crate::validate::interface::Interface;
use crate::validate::runner::Runner;

/// Number of tokens per chunk: the logits of all its positions are in memory.
const CHUNK: usize = 256;
/// Number of ranges of positions, and smallest size of a range.
const BINS: usize = 8;
const NARROWEST: usize = 64;
/// Smallest number of predicted tokens for which a range of positions is checked against a promise (1,024 minus the
/// last positions of sequences, which predict nothing). With fewer, the perplexity varies by more than a percent by
/// chance.
const TELLING: usize = 1000;
/// Largest plausible ratio of KL to increase of loss. If a smaller cache adds noise to the logits, the KL is 1 to 3.5
/// times the increase of the loss; for a model with other predictions it is much larger.
const KL_PER_LOSS: f64 = 4.0;

/// A model to be measured.
pub struct Reader<'a> {
    /// Its session.
    pub session: &'a mut dyn Session,
    /// Its inputs and outputs.
    pub interface: &'a Interface,
    /// The tokens that it reads exactly. A measurement reads every token but those of its own run through the cache: where
    /// runs read their own tokens exactly, a run has one token, and where only the first run does, that run has one.
    pub exact: ExactTokens,
}

/// The quality of a rewritten model against the original on a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quality {
    /// Number of predicted tokens.
    pub tokens: usize,
    /// `exp` of the original's mean negative log-likelihood.
    pub original_perplexity: f64,
    /// The same of the rewritten model.
    pub rewritten_perplexity: f64,
    /// Mean of KL(original || rewritten) of the next-token distribution, in nats.
    pub mean_kl: f64,
    /// Share of positions at which both models have the same most likely token.
    pub top1_agreement: f64,
    /// Number of tokens that the rewritten model read per run; it read all earlier tokens through its cache.
    pub tokens_at_once: usize,
    /// Bytes of the original's caches per token.
    pub original_cache_bytes: f64,
    /// Bytes of the rewritten model's caches per token.
    pub rewritten_cache_bytes: f64,
    /// The same figures for ranges of positions of equal size, in order, up to the length of the sequences.
    pub positions: Vec<Bin>,
}

/// The quality for one range of positions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bin {
    /// The first position.
    pub first: usize,
    /// The last position.
    pub last: usize,
    /// Number of tokens predicted from these positions, over all sequences.
    pub tokens: usize,
    /// `exp` of the original's mean negative log-likelihood.
    pub original_perplexity: f64,
    /// The same of the rewritten model.
    pub rewritten_perplexity: f64,
    /// Mean KL(original || rewritten), in nats.
    pub mean_kl: f64,
    /// Share of positions at which both models have the same most likely token.
    pub top1_agreement: f64,
}

impl Bin {
    /// The increase of perplexity, relative to the original's.
    #[must_use]
    pub fn increase(&self) -> f64 {
        self.rewritten_perplexity / self.original_perplexity - 1.0
    }
}

impl Quality {
    /// The increase of perplexity, relative to the original's.
    #[must_use]
    pub fn increase(&self) -> f64 {
        self.rewritten_perplexity / self.original_perplexity - 1.0
    }

    /// The largest increase of perplexity over all tokens and over each range of positions with enough tokens.
    #[must_use]
    pub fn worst_increase(&self) -> f64 {
        let bins = self.telling().map(Bin::increase);
        bins.fold(self.increase(), larger)
    }

    /// The largest mean KL over all tokens and over each range of positions with enough tokens.
    #[must_use]
    pub fn worst_kl(&self) -> f64 {
        let bins = self.telling().map(|bin| bin.mean_kl);
        bins.fold(self.mean_kl, larger)
    }

    /// The increase of perplexity that is compared with a promise: the worst increase, or the one that the worst KL
    /// stands for if that is larger.
    ///
    /// Perplexity alone is not sufficient: a model whose predictions differ from the original's may have the same or a
    /// lower perplexity by chance, and only its KL shows it. An increase of x requires `KL <= KL_PER_LOSS ln(1 + x)`,
    /// so a KL corresponds to an increase of `e^(KL / KL_PER_LOSS) - 1`.
    #[must_use]
    pub fn promised_increase(&self) -> f64 {
        larger(self.worst_increase(), self.increase_by_kl())
    }

    /// The increase of perplexity that the worst KL stands for.
    #[must_use]
    pub fn increase_by_kl(&self) -> f64 {
        (self.worst_kl() / KL_PER_LOSS).exp() - 1.0
    }

    /// Whether several ranges of positions have enough tokens. The worst of one range is hardly more than the mean.
    #[must_use]
    pub fn is_by_position(&self) -> bool {
        self.telling().count() > 1
    }

    /// The ranges of positions with at least [`TELLING`] tokens.
    fn telling(&self) -> impl Iterator<Item = &Bin> {
        self.positions.iter().filter(|bin| bin.tokens >= TELLING)
    }
}

/// The larger of two numbers, or NaN if either is NaN, so that no promise is kept by a failed measurement.
fn larger(a: f64, b: f64) -> f64 {
    if a >= b || a.is_nan() { a } else { b }
}

/// Perplexity of one model on `text`.
///
/// # Errors
/// [`ValidateError`] if the model fails or its logits are not finite.
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
        runner.start_one()?;
        for (_, chunk, targets) in chunks(tokens, model.interface) {
            let logits = read(&mut runner, chunk, model.exact)?;
            let rows = rows(&logits, targets)?;
            losses.extend(in_parallel(&rows, &|&(row, target): &(&[f32], i64)| {
                loss(row, target)
            }));
        }
    }
    progress(total, total);
    finite(mean(&losses).exp())
}

/// Runs both models on `text`, chunk by chunk, and compares their logits. `progress` is called with (done, total)
/// tokens.
///
/// # Errors
/// [`ValidateError`] if a model fails, or logits differ in shape or are not finite.
pub fn compare(
    original: Reader,
    rewritten: Reader,
    text: &Text,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Quality, ValidateError> {
    let interface = original.interface;
    let mut before = Runner::new(original.session, original.interface)?;
    let mut after = Runner::new(rewritten.session, rewritten.interface)?;
    let mut seen: Vec<(usize, Prediction)> = Vec::new();
    let total = text.ids.len();
    for (number, tokens) in text.sequences().enumerate() {
        before.start_one()?;
        after.start_one()?;
        for (first, chunk, targets) in chunks(tokens, interface) {
            progress(number * text.length + first, total);
            let p = read(&mut before, chunk, original.exact)?;
            let q = read(&mut after, chunk, rewritten.exact)?;
            if p.shape != q.shape {
                return Err(ValidateError::Logits {
                    step: format!("sequence {}", number + 1),
                    original: p.shape.clone(),
                    rewritten: q.shape.clone(),
                });
            }
            let (p, q) = (rows(&p, targets)?, rows(&q, targets)?);
            let pairs: Vec<_> = p.into_iter().zip(q).collect();
            let predictions = in_parallel(&pairs, &|&((p, target), (q, _))| {
                Prediction::of(p, q, target)
            });
            seen.extend((first..).zip(predictions));
        }
    }
    progress(total, total);
    let all = bin(0..text.length, &seen)?;
    let width = text.length.div_ceil(BINS).max(NARROWEST);
    let firsts = (0..text.length.saturating_sub(1)).step_by(width);
    let bins = firsts.map(|first| bin(first..(first + width).min(text.length), &seen));
    Ok(Quality {
        tokens: all.tokens,
        original_perplexity: all.original_perplexity,
        rewritten_perplexity: all.rewritten_perplexity,
        mean_kl: all.mean_kl,
        top1_agreement: all.top1_agreement,
        tokens_at_once: match rewritten.exact {
            ExactTokens::Step => 1,
            _ => chunk_size(interface, text.length),
        },
        original_cache_bytes: before.cache_bytes_per_token(),
        rewritten_cache_bytes: after.cache_bytes_per_token(),
        positions: bins.collect::<Result<_, _>>()?,
    })
}

/// The quality for the positions in `range`, from the predictions `seen` with their positions.
fn bin(range: Range<usize>, seen: &[(usize, Prediction)]) -> Result<Bin, ValidateError> {
    let inside = || seen.iter().filter(|(at, _)| range.contains(at));
    let of = |value: fn(&Prediction) -> f64| {
        let values: Vec<f64> = inside().map(|(_, p)| value(p)).collect();
        mean(&values)
    };
    Ok(Bin {
        first: range.start,
        last: range.end.saturating_sub(1),
        tokens: inside().count(),
        original_perplexity: finite(of(|p| p.original_loss).exp())?,
        rewritten_perplexity: finite(of(|p| p.rewritten_loss).exp())?,
        mean_kl: of(|p| p.kl),
        top1_agreement: of(|p| f64::from(u8::from(p.same))),
    })
}

/// The chunks of one sequence, each with its first position and the next token of each of its positions. The last
/// position of the sequence has none.
fn chunks<'t>(
    tokens: &'t [i64],
    interface: &Interface,
) -> impl Iterator<Item = (usize, &'t [i64], &'t [i64])> {
    let size = chunk_size(interface, tokens.len());
    tokens.chunks(size).enumerate().map(move |(number, chunk)| {
        let first = number * size + 1;
        let last = (first + chunk.len()).min(tokens.len());
        let targets = tokens.get(first..last).unwrap_or_default();
        (number * size, chunk, targets)
    })
}

/// Number of tokens per run, for a sequence of `length` tokens: that which the file fixes, if it does. A model without a cache
/// reads the whole sequence in one run.
fn chunk_size(interface: &Interface, length: usize) -> usize {
    match (interface.caches.is_empty(), interface.fixed_length()) {
        (true, _) => length.max(1),
        (false, fixed) => fixed.unwrap_or(CHUNK).max(1),
    }
}

/// The logits [1, tokens, vocabulary] of `tokens` after the cached ones. With `exact` tokens they are read in several runs
/// (see [`Reader::exact`]).
fn read(runner: &mut Runner, tokens: &[i64], exact: ExactTokens) -> Result<Tensor, ValidateError> {
    let first = match exact {
        ExactTokens::Step => tokens.len(),
        ExactTokens::Prompt if runner.past() == 0 => 1.min(tokens.len()),
        _ => 0,
    };
    let (alone, together) = tokens.split_at(first);
    let runs = alone
        .chunks(1)
        .chain([together])
        .filter(|run| !run.is_empty());
    let (mut shape, mut values) = (vec![1, 0, 0], Vec::new());
    for run in runs {
        let rows = runner.read(run)?;
        shape = vec![1, tokens.len(), rows.shape.last().copied().unwrap_or(0)];
        values.extend_from_slice(&rows.floats());
    }
    Ok(Tensor::new(shape, Data::F32(values))?)
}

/// Applies `of` to every item, on all available threads, and returns the results in order. Items are processed
/// independently, so that the results do not depend on the number of threads.
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

#[cfg(test)]
mod tests {
    use super::{Bin, Quality};

    fn quality(bins: &[(usize, f64, f64)]) -> Quality {
        let bin = |(number, &(tokens, rewritten_perplexity, mean_kl)): (usize, &_)| Bin {
            first: 512 * number,
            last: 512 * number + 511,
            tokens,
            original_perplexity: 10.0,
            rewritten_perplexity,
            mean_kl,
            top1_agreement: 1.0,
        };
        Quality {
            tokens: bins.iter().map(|bin| bin.0).sum(),
            original_perplexity: 10.0,
            rewritten_perplexity: 10.1,
            mean_kl: 0.02,
            top1_agreement: 1.0,
            tokens_at_once: 256,
            original_cache_bytes: 512.0,
            rewritten_cache_bytes: 256.0,
            positions: bins.iter().enumerate().map(bin).collect(),
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn the_worst_range_of_positions_is_what_a_promise_is_held_to() {
        let far = quality(&[(1024, 10.0, 0.01), (1022, 12.0, 0.05)]);
        assert!(close(far.worst_increase(), 0.2) && close(far.promised_increase(), 0.2));
        assert!(close(far.worst_kl(), 0.05));
        // A handful of tokens tells nothing.
        let few = quality(&[(1024, 10.0, 0.01), (300, 12.0, 0.05)]);
        assert!(close(few.worst_increase(), 0.01) && close(few.worst_kl(), 0.02));
    }

    #[test]
    fn a_model_that_says_something_else_at_the_same_perplexity_breaks_a_promise_on_perplexity() {
        let other = quality(&[(1024, 9.5, 1.5), (1024, 9.5, 1.5)]);
        assert!(close(other.worst_increase(), 0.01));
        assert!(other.promised_increase() > 0.4);
    }
}
