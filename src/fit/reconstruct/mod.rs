//! Local reconstruction of every layer of a model, on the queries, keys and values of a text.
//!
//! Layers are processed in the model's order, in waves. The target of a layer is its output in the original model; its
//! inputs are recorded in the model whose earlier layers are already rewritten. Each finished layer is saved, so that
//! an interrupted run resumes after it.

pub mod error;
mod kept;
mod recording;
mod reproduce;
mod sequence;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use error::ReconstructError;
use gqa2mla_passes::analysis::identity::SiteId;
use gqa2mla_passes::analysis::observe::ObservedLayer;
use gqa2mla_passes::factor::reconstruct::{Attention, Descent, Example, outputs, reconstruct};
use gqa2mla_passes::factor::{CacheBits, Factors};
use gqa2mla_passes::forms::{ExactTokens, Join};
use gqa2mla_passes::operators::Target;
use gqa2mla_passes::pipeline::factorize::Wanted;
use gqa2mla_passes::{Absorbed, RankPlan, RewriteOptions, SiteView, rewrite};
use kept::{layer_file, load, save};
use recording::{Recording, ReproducedModel};
use reproduce::Reproduced;

use crate::files::load::LoadedModel;
use crate::files::tensors::ArraysError;
use crate::fit::calibrate::Analyzed;
use crate::fit::factors::{Factorization, from_moments, moments};
use crate::fit::statistics::ModelStatistics;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;

/// Number of layers per wave, which share the same rewritten earlier layers. The result depends on it, so it must not
/// depend on the machine.
const WAVE: usize = 6;

/// The inputs of a reconstruction.
pub struct Job<'j> {
    /// The original model.
    pub model: Analyzed<'j>,
    /// Text to reconstruct on; its last sequence is held out.
    pub text: &'j Text,
    /// Statistics of the model.
    pub statistics: &'j ModelStatistics,
    /// The factorization from which the descent starts.
    pub factorization: Factorization,
    /// Options of the rewrite.
    pub options: &'j RewriteOptions<'j>,
    /// Options of the descent.
    pub descent: Descent,
    /// Options of the runtime.
    pub runtime: &'j RuntimeOptions,
}

/// The result for one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct ReconstructedLayer {
    /// The layer.
    pub layer: usize,
    /// Relative squared error of the attention's output on the held-out sequence, before and after; `None` if the layer
    /// was not reconstructed.
    pub error: Option<[f64; 2]>,
    /// Why it was not reconstructed, if it was not.
    pub left: Option<String>,
}

/// Reconstructed factors, one file per layer.
pub struct Reconstruction {
    folder: PathBuf,
    numbers: BTreeMap<SiteId, usize>,
    /// The result for each layer.
    pub outcomes: Vec<ReconstructedLayer>,
}

/// Progress of a reconstruction.
#[derive(Debug, Clone, Copy)]
pub enum ReconstructProgress {
    /// Tokens that the original has read: (done, total).
    Recording(usize, usize),
    /// Tokens that a model with rewritten earlier layers has read: (done, total).
    RecordingRewritten(usize, usize),
    /// Steps over all layers: (done, total, relative error of the last step).
    Descending(usize, usize, f64),
}

/// Reconstructs every layer, in parallel on all processors. Each layer is single-threaded, so that the result does not
/// depend on their number. Finished layers are saved in `folder`.
///
/// # Errors
/// [`ReconstructError`]. Finished layers stay in `folder`.
pub fn run(
    job: &Job,
    folder: &Path,
    progress: &mut (dyn FnMut(ReconstructProgress) + Send),
) -> Result<Reconstruction, ReconstructError> {
    fs::create_dir_all(folder).map_err(|cause| ReconstructError::Io {
        path: folder.display().to_string(),
        cause,
    })?;
    let subject = ReproducedModel::of(
        job.model,
        job.text,
        job.options.form.cached_keys(),
        job.runtime,
    )?;
    let record = &mut |n, of| progress(ReconstructProgress::Recording(n, of));
    let original = subject.record(job.model, job.text, folder, job.runtime, record)?;
    let count = subject.layers.len();
    let ids = subject.layers.iter().enumerate();
    let mut done = Reconstruction {
        folder: folder.to_path_buf(),
        numbers: ids.map(|(n, (layer, _))| (layer.id.clone(), n)).collect(),
        outcomes: Vec::new(),
    };
    let steps = AtomicUsize::new(0);
    let total = count * job.descent.steps;
    let progress = Mutex::new(progress);
    let tell = |at| match progress.lock() {
        Ok(mut progress) => progress(at),
        // The callback has unwound on another thread, which ends the work on all threads.
        Err(poisoned) => resume_unwind(Box::new(poisoned.to_string())),
    };
    for first in (0..count).step_by(WAVE) {
        let wave = first..(first + WAVE).min(count);
        // A file that cannot be read is recomputed.
        let finished = |position| matches!(load(&layer_file(folder, position)), Ok(Some(_)));
        let seen = match first > 0 && !wave.clone().all(finished) {
            true => {
                let model = done.in_front(job, &subject, first)?;
                let record = &mut |done, total| {
                    tell(ReconstructProgress::RecordingRewritten(done, total));
                };
                let rewritten = (&model, wave.clone());
                Some(subject.record_rewritten(rewritten, job.text, folder, job.runtime, record)?)
            }
            false => None,
        };
        let descended = |error| {
            let done = steps.fetch_add(1, Ordering::Relaxed) + 1;
            tell(ReconstructProgress::Descending(done, total, error));
        };
        let outcomes = each(wave, &|position| {
            let inputs = RecordedInputs {
                original: &original,
                seen: seen.as_ref(),
            };
            layer(job, &subject, &inputs, position, folder, &mut |e| {
                descended(e)
            })
        });
        done.outcomes
            .extend(outcomes.into_iter().collect::<Result<Vec<_>, _>>()?);
    }
    Ok(done)
}

/// Calls `work` on each of `positions` in parallel, and returns the results in order. Unwinds if `work` does.
fn each<T: Send>(positions: Range<usize>, work: &(dyn Fn(usize) -> T + Sync)) -> Vec<T> {
    let next = AtomicUsize::new(positions.start);
    let made = Mutex::new(BTreeMap::new());
    let worker = || {
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            if position >= positions.end {
                return;
            }
            let one = work(position);
            if let Ok(mut made) = made.lock() {
                made.insert(position, one);
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let unwound = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        let ended = workers.into_iter().map(thread::ScopedJoinHandle::join);
        ended.filter_map(Result::err).last()
    });
    if let Some(payload) = unwound {
        resume_unwind(payload);
    }
    let made = made
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    made.into_values().collect()
}

/// The recorded activations of the layers of a wave.
struct RecordedInputs<'i> {
    /// Those in the original model.
    original: &'i Recording,
    /// Those in the model with rewritten earlier layers; `None` for the first wave.
    seen: Option<&'i Recording>,
}

impl Reconstruction {
    /// The model with the layers before `position` rewritten.
    fn in_front(
        &self,
        job: &Job,
        subject: &ReproducedModel,
        position: usize,
    ) -> Result<LoadedModel, ReconstructError> {
        let ranks = |(layer, _): &(ObservedLayer, Reproduced)| {
            let ranks = job.options.ranks_of(&layer.id, &layer.site);
            (layer.id.clone(), ranks)
        };
        let ranks: BTreeMap<_, _> = subject.layers.iter().take(position).map(ranks).collect();
        // Keys inside a fused operator cannot be recorded, so that the model is rewritten to primitives. The text is
        // read in one run, so that all tokens must be latents, as in decoding. A cache that is written in place has another
        // length than those of the layers behind, whose attentions would not be recognised.
        let asked = job.options.form;
        let form = match asked.target() {
            Target::MatMul if asked.exact_tokens() == ExactTokens::None => asked,
            _ => &Absorbed,
        };
        let options = RewriteOptions {
            form,
            bits: CacheBits::Model,
            join: Join::Append,
            only: Some(ranks.keys().cloned().collect()),
            ranks: RankPlan::Each(ranks),
            allow_partial: true,
            ..job.options.clone()
        };
        let mut model = job.model.model.clone();
        let mut factorize = |view: &SiteView, _: Wanted| {
            let factors = self.factors(view.id())?;
            factors.map(Into::into).ok_or_else(|| {
                format!("there are no factors of layer {}", view.site().layer).into()
            })
        };
        let store = &mut |tensor| Ok(tensor);
        rewrite(
            &mut model.model,
            &options,
            &mut factorize,
            store,
            &mut |_, _| {},
        )
        .map_err(Box::new)?;
        Ok(model)
    }

    /// The factors of the attention `id`.
    ///
    /// # Errors
    /// [`ArraysError`] if its file cannot be read.
    pub fn factors(&self, id: &SiteId) -> Result<Option<Factors>, ArraysError> {
        let Some(number) = self.numbers.get(id) else {
            return Ok(None);
        };
        Ok(load(&layer_file(&self.folder, *number))?.map(|(factors, _)| factors))
    }
}

fn layer(
    job: &Job,
    subject: &ReproducedModel,
    inputs: &RecordedInputs,
    position: usize,
    folder: &Path,
    progress: &mut dyn FnMut(f64),
) -> Result<ReconstructedLayer, ReconstructError> {
    let path = layer_file(folder, position);
    let mut told = 0;
    let mut tell = |error: f64| {
        told += 1;
        progress(error);
    };
    let Some((observed, how)) = subject.layers.get(position) else {
        return Err(ReconstructError::Io {
            path: path.display().to_string(),
            cause: io::ErrorKind::NotFound.into(),
        });
    };
    let number = observed.site.layer;
    let outcome = if let Some((_, error)) = load(&path).unwrap_or_default() {
        ReconstructedLayer {
            layer: number,
            error,
            left: None,
        }
    } else {
        let failed = |cause| ReconstructError::Factor {
            layer: number,
            cause,
        };
        let site = &observed.site;
        let Some(statistics) = job.statistics.layers.get(&observed.id) else {
            return Ok(left(number, "there are no statistics of it"));
        };
        let moments = moments(
            observed.shared_scoring.as_ref(),
            observed.value_weight.clone(),
            statistics,
            job.factorization,
            job.options.form.cached_keys(),
            job.options.positions(),
        );
        let ranks = job.options.ranks_of(&observed.id, site);
        let start = from_moments(site, &moments, ranks).map_err(failed)?;
        match how {
            Reproduced::Not(why) => {
                save(&start, None, &path)?;
                left(number, why)
            }
            Reproduced::As(attention) => {
                // Sequences are moved by the RoPE that the statistics have confirmed.
                let seen = statistics.position_free.as_ref();
                let attention = Attention {
                    rope: seen.map(|sums| sums.rope.clone()),
                    ..*attention.clone()
                };
                let examples = inputs.examples(observed, &attention, position)?;
                let (found, error) = reconstruct(
                    &attention,
                    &moments,
                    &start,
                    &examples,
                    job.descent,
                    &mut |_, error| tell(error),
                )
                .map_err(failed)?;
                save(&found, Some(error), &path)?;
                ReconstructedLayer {
                    layer: number,
                    error: Some(error),
                    left: None,
                }
            }
        }
    };
    let last = outcome.error.map_or(0.0, |e| e[1]);
    (told..job.descent.steps).for_each(|_| progress(last));
    Ok(outcome)
}

impl RecordedInputs<'_> {
    /// The examples of the layer at `position`: recorded inputs, and the outputs of the original on the same text.
    fn examples(
        &self,
        observed: &ObservedLayer,
        attention: &Attention,
        position: usize,
    ) -> Result<Vec<Example>, ReconstructError> {
        let original = self.original.read(observed, position)?.into_iter();
        let Some(seen) = self.seen else {
            return Ok(original.map(|s| Example::of(attention, s)).collect());
        };
        let pairs = original.zip(seen.read(observed, position)?);
        let examples = pairs.map(|(original, sequence)| Example {
            target: outputs(attention, &original),
            sequence,
        });
        Ok(examples.collect())
    }
}

fn left(layer: usize, why: &str) -> ReconstructedLayer {
    ReconstructedLayer {
        layer,
        error: None,
        left: Some(why.to_owned()),
    }
}
