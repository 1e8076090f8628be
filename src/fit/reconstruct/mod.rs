//! Local reconstruction of every layer of a model, on the queries, keys and values of a text.
//!
//! Layers are taken in the model's order, some at a time. What they have to give is what they give in the original; what
//! they read for it is what the layers in front of them, already rewritten, leave. Each finished layer is kept in a folder
//! beside the output, so that a run that is stopped goes on with the next one.

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
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use error::ReconstructError;
use gqa2mla_passes::analysis::identity::SiteId;
use gqa2mla_passes::analysis::observe::ObservedLayer;
use gqa2mla_passes::factor::Factors;
use gqa2mla_passes::factor::reconstruct::{Attention, Descent, Example, outputs, reconstruct};
use gqa2mla_passes::operators::Target;
use gqa2mla_passes::pipeline::factorize::Wanted;
use gqa2mla_passes::{Absorbed, RankPlan, RewriteOptions, SiteView, rewrite};
use kept::{layer_file, load, save};
use recording::{Recording, Subject};
use reproduce::Reproduced;

use crate::files::load::LoadedModel;
use crate::files::tensors::ArraysError;
use crate::fit::calibrate::Analyzed;
use crate::fit::factors::{Factorization, from_moments, moments};
use crate::fit::statistics::ModelStatistics;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;

/// Layers that are worked on with the same layers rewritten in front of them. The result depends on it, so that it must not
/// depend on the machine.
const WAVE: usize = 6;

/// What to make, and of what.
pub struct Job<'j> {
    /// The model before.
    pub model: Analyzed<'j>,
    /// Text to reconstruct on. Its last sequence is kept aside to judge by.
    pub text: &'j Text,
    /// Statistics of the model.
    pub statistics: &'j ModelStatistics,
    /// Where the descent starts.
    pub factorization: Factorization,
    /// How the model is to be rewritten.
    pub options: &'j RewriteOptions<'j>,
    /// How to descend.
    pub descent: Descent,
    /// Where the model runs.
    pub runtime: &'j RuntimeOptions,
}

/// What came of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The layer.
    pub layer: usize,
    /// Relative squared error of the attention's output on the sequence that was kept aside, before and after; `None`
    /// where the layer was left as it was.
    pub error: Option<[f64; 2]>,
    /// Why it was left, if it was.
    pub left: Option<String>,
}

/// Reconstructed factors, one file a layer.
pub struct Reconstruction {
    folder: PathBuf,
    numbers: BTreeMap<SiteId, usize>,
    /// What came of each layer.
    pub outcomes: Vec<Outcome>,
}

/// How far a reconstruction is.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// Sequences recorded, of how many.
    Recording(usize, usize),
    /// Steps done over all layers, of how many, and the relative error of the last of them.
    Descending(usize, usize, f64),
}

/// Reconstructs every layer, as many at a time as there are processors; each is worked on by one, so that the result
/// does not depend on their number. `folder` keeps what is finished.
///
/// # Errors
/// [`ReconstructError`]; what is finished stays in `folder`.
pub fn run(
    job: &Job,
    folder: &Path,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Reconstruction, ReconstructError> {
    fs::create_dir_all(folder).map_err(|cause| ReconstructError::Io {
        path: folder.display().to_string(),
        cause,
    })?;
    let subject = Subject::of(
        job.model,
        job.text,
        job.options.form.cached_keys(),
        job.runtime,
    )?;
    let record = &mut |n, of| progress(Progress::Recording(n, of));
    let original = subject.record(job.model, job.text, folder, job.runtime, record)?;
    let count = subject.layers.len();
    let ids = subject.layers.iter().enumerate();
    let mut done = Reconstruction {
        folder: folder.to_path_buf(),
        numbers: ids.map(|(n, (layer, _))| (layer.id.clone(), n)).collect(),
        outcomes: Vec::new(),
    };
    let steps = AtomicUsize::new(0);
    let progress = Mutex::new(progress);
    for first in (0..count).step_by(WAVE) {
        let wave = first..(first + WAVE).min(count);
        // A file that cannot be read is made again, from the same inputs as the first time.
        let finished = |position| matches!(load(&layer_file(folder, position)), Ok(Some(_)));
        let seen = match first > 0 && !wave.clone().all(finished) {
            true => {
                let model = done.in_front(job, &subject, first)?;
                let (text, runtime) = (job.text, job.runtime);
                Some(subject.record_rewritten(wave.clone(), &model, text, folder, runtime)?)
            }
            false => None,
        };
        let total = count * job.descent.steps;
        let tell = |error| {
            let done = steps.fetch_add(1, Ordering::Relaxed) + 1;
            if let Ok(mut progress) = progress.lock() {
                progress(Progress::Descending(done, total, error));
            }
        };
        let outcomes = each(wave, &|position| {
            let inputs = Inputs {
                original: &original,
                seen: seen.as_ref(),
            };
            layer(job, &subject, &inputs, position, folder, &mut |e| tell(e))
        });
        done.outcomes
            .extend(outcomes.into_iter().collect::<Result<Vec<_>, _>>()?);
    }
    Ok(done)
}

/// What `work` makes of each of `positions`, as many at a time as there are processors.
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
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(worker);
        }
    });
    let made = made
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    made.into_values().collect()
}

/// Where what a layer reads is recorded.
struct Inputs<'i> {
    /// In the original model.
    original: &'i Recording,
    /// In the model whose layers in front are rewritten; nothing where none are.
    seen: Option<&'i Recording>,
}

impl Reconstruction {
    /// The model with the layers before `position` rewritten, in memory.
    fn in_front(
        &self,
        job: &Job,
        subject: &Subject,
        position: usize,
    ) -> Result<LoadedModel, ReconstructError> {
        let ranks = |(layer, _): &(ObservedLayer, Reproduced)| {
            let ranks = job.options.ranks_of(&layer.id, &layer.site);
            (layer.id.clone(), ranks)
        };
        let ranks: BTreeMap<_, _> = subject.layers.iter().take(position).map(ranks).collect();
        // An operator of the runtime's own keeps its keys to itself; primitives of the same keys show them.
        let form = match job.options.form.target() {
            Target::MatMul => job.options.form,
            Target::Gqa => &Absorbed,
        };
        let options = RewriteOptions {
            form,
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
    /// [`ArraysError`] when its file is gone.
    pub fn factors(&self, id: &SiteId) -> Result<Option<Factors>, ArraysError> {
        let Some(number) = self.numbers.get(id) else {
            return Ok(None);
        };
        Ok(load(&layer_file(&self.folder, *number))?.map(|(factors, _)| factors))
    }
}

fn layer(
    job: &Job,
    subject: &Subject,
    inputs: &Inputs,
    position: usize,
    folder: &Path,
    progress: &mut dyn FnMut(f64),
) -> Result<Outcome, ReconstructError> {
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
        Outcome {
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
            site,
            observed.scoring.as_ref(),
            observed.output_projection.as_ref(),
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
                // What the statistics saw of the rotation is what sequences are moved by.
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
                Outcome {
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

impl Inputs<'_> {
    /// What the layer at `position` reads, and what the original makes of the same text.
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

fn left(layer: usize, why: &str) -> Outcome {
    Outcome {
        layer,
        error: None,
        left: Some(why.to_owned()),
    }
}
