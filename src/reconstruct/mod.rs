//! Local reconstruction of every layer of a model, on the queries, keys and values of a text.
//!
//! Each finished layer is kept in a folder beside the output, so that a run that is stopped goes on with the next one.

mod attention;
mod recording;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use gqa2mla_passes::LatentForm;
use gqa2mla_passes::factor::reconstruct::{Descent, reconstruct};
use gqa2mla_passes::factor::weighted::SideFactors;
use gqa2mla_passes::factor::{Factors, Ranks, SpectralError};
use gqa2mla_passes::observe::ObservedLayer;
use recording::Recording;

use crate::calibrate::{CalibrateError, ModelStatistics};
use crate::factors::{Factorization, from_moments, moments};
use crate::model::load::LoadedModel;
use crate::runtime::RuntimeOptions;
use crate::tensors::{Arrays, ArraysError};
use crate::text::Text;
use attention::Reproduced;

/// What the file of one finished layer is.
const KIND: &str = "gqa2mla factors 2";

/// Why there are no reconstructed factors.
#[derive(Debug, thiserror::Error)]
pub enum ReconstructError {
    /// The model could not be watched.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// The system refuses.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: String,
        /// The system's answer.
        cause: io::Error,
    },
    /// A file of factors.
    #[error(transparent)]
    Arrays(#[from] ArraysError),
    /// Linear algebra.
    #[error("layer {layer}: {cause}")]
    Factor {
        /// The layer.
        layer: usize,
        /// What went wrong.
        cause: SpectralError,
    },
}

/// What to make, and of what.
pub struct Job<'j> {
    /// The model before.
    pub model: &'j LoadedModel,
    /// Text to reconstruct on. Its last sequence is kept aside to judge by.
    pub text: &'j Text,
    /// Statistics of the model.
    pub statistics: &'j ModelStatistics,
    /// Where the descent starts.
    pub factorization: Factorization,
    /// What is cached.
    pub form: LatentForm,
    /// Latent widths of each attention.
    pub ranks: &'j (dyn Fn(&ObservedLayer) -> Ranks + Sync),
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
    numbers: BTreeMap<String, usize>,
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
    let (model, text) = (job.model, job.text);
    let recording = Recording::make(model, text, job.form, folder, job.runtime, &mut |n, of| {
        progress(Progress::Recording(n, of));
    })?;
    let count = recording.layers.len();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let total = count * job.descent.steps;
    let shared = Mutex::new((progress, vec![None; count], None));
    let work = || {
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            let failed = shared.lock().map_or(true, |s| s.2.is_some());
            if position >= count || failed {
                return;
            }
            let outcome = layer(job, &recording, position, folder, &mut |error| {
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if let Ok(mut shared) = shared.lock() {
                    (shared.0)(Progress::Descending(done, total, error));
                }
            });
            if let Ok(mut shared) = shared.lock() {
                match outcome {
                    Ok(outcome) => {
                        if let Some(slot) = shared.1.get_mut(position) {
                            *slot = Some(outcome);
                        }
                    }
                    Err(error) => shared.2 = Some(error),
                }
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    let (_, outcomes, error) = shared
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(error) = error {
        return Err(error);
    }
    let ids = recording.layers.iter().enumerate();
    Ok(Reconstruction {
        folder: folder.to_path_buf(),
        numbers: ids.map(|(n, (layer, _))| (layer.id.clone(), n)).collect(),
        outcomes: outcomes.into_iter().flatten().collect(),
    })
}

impl Reconstruction {
    /// The factors of the attention `id`.
    ///
    /// # Errors
    /// [`ArraysError`] when its file is gone.
    pub fn factors(&self, id: &str) -> Result<Option<Factors>, ArraysError> {
        let Some(number) = self.numbers.get(id) else {
            return Ok(None);
        };
        Ok(load(&layer_file(&self.folder, *number))?.map(|(factors, _)| factors))
    }
}

fn layer_file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("layer-{number}.safetensors"))
}

fn layer(
    job: &Job,
    recording: &Recording,
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
    let Some((observed, how)) = recording.layers.get(position) else {
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
            job.form,
        );
        let start = from_moments(site, &moments, (job.ranks)(observed)).map_err(failed)?;
        match how {
            Reproduced::Not(why) => {
                save(&start, None, &path)?;
                left(number, why)
            }
            Reproduced::As(attention) => {
                let sequences = recording.read(position)?;
                let (found, error) = reconstruct(
                    attention,
                    &moments,
                    &start,
                    &sequences,
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

fn left(layer: usize, why: &str) -> Outcome {
    Outcome {
        layer,
        error: None,
        left: Some(why.to_owned()),
    }
}

fn save(factors: &Factors, error: Option<[f64; 2]>, path: &Path) -> Result<(), ArraysError> {
    let mut file = Arrays::default();
    for (name, side) in [("key", &factors.key), ("value", &factors.value)] {
        file.put(&format!("{name}/down"), &side.down.view());
        file.put(&format!("{name}/up"), &side.up.view());
        file.put(&format!("{name}/spectrum"), &side.spectrum.view());
    }
    if let Some(bias) = &factors.bias {
        file.put("bias", &bias.view());
    }
    if let Some(error) = error {
        file.put("error", &ndarray::arr1(&error).view());
    }
    file.save(KIND, path)
}

/// The factors in a file, with the errors before and after; nothing where there is no file yet.
#[allow(clippy::type_complexity)]
fn load(path: &Path) -> Result<Option<(Factors, Option<[f64; 2]>)>, ArraysError> {
    if !path.exists() {
        return Ok(None);
    }
    let file = Arrays::load(KIND, path)?;
    let side = |name: &str| {
        Ok::<_, String>(SideFactors {
            down: file.get(&format!("{name}/down"))?,
            up: file.get(&format!("{name}/up"))?,
            spectrum: file.get(&format!("{name}/spectrum"))?,
        })
    };
    let factors = || {
        Ok::<_, String>(Factors {
            key: side("key")?,
            value: side("value")?,
            bias: file.get("bias").ok(),
        })
    };
    let error = file
        .get::<ndarray::Ix1>("error")
        .ok()
        .and_then(|e| e.to_vec().try_into().ok());
    let factors = factors().map_err(|detail| ArraysError::Format {
        path: path.display().to_string(),
        kind: KIND,
        detail,
    })?;
    Ok(Some((factors, error)))
}
