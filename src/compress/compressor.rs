//! The rewrite of one model with statistics and reconstruction.

use std::path::{Path, PathBuf};

use gqa2mla_passes::factor::reconstruct::Descent;
use gqa2mla_passes::factor::{CacheBits, Made};
use gqa2mla_passes::forms::CachedKeys;
use gqa2mla_passes::pipeline::factorize::Wanted;
use gqa2mla_passes::pipeline::{Planned, plan};
use gqa2mla_passes::recognize::rotation::Rotated;
use gqa2mla_passes::{
    Analysis, RankPlan, RewriteError, RewriteOptions, Rewritten, SiteView, by_weights,
};

use crate::compress::compressed::Compressed;
use crate::compress::convert::{ConvertError, stage};
use crate::compress::error::CompressError;
use crate::compress::events::{Event, Observer, Stage, steps};
use crate::compress::metadata::note;
use crate::compress::work;
use crate::files::identity::identity;
use crate::files::interrupted::keep_work;
use crate::files::load::LoadedModel;
use crate::files::save::{DataFile, output_path};
use crate::fit::calibrate::{Analyzed, CalibrateError};
use crate::fit::factors::{Factorization, decoupled, from_moments, joint_of, moments};
use crate::fit::reconstruct::error::ReconstructError;
use crate::fit::reconstruct::{self, Job, Reconstruction};
use crate::fit::rounding::RoundingInputs;
use crate::fit::statistics::ModelStatistics;
use crate::measure::quality::Quality;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;

/// The destination of a rewritten model.
#[derive(Debug, Clone)]
pub struct Destination<'d> {
    /// An output path that ends in `.onnx`, or a folder, in which the model has the input's file name. Models are
    /// staged beside it and moved there when they are accepted.
    pub out: &'d Path,
    /// The data file of the weights.
    pub data: DataFile,
    /// The folder for finished layers of an interrupted run; `None`: the folder of the output.
    pub work: Option<&'d Path>,
    /// The file with the state of an interrupted distillation.
    pub checkpoint: PathBuf,
}

/// The common parameters of all rewrites of one model.
#[derive(Clone)]
pub struct Compressor<'c> {
    /// The original model.
    pub model: &'c LoadedModel,
    /// Its analysis, with operators expanded for the target of every rewrite: see [`analysis`].
    pub analysis: &'c Analysis,
    /// The destination of the models.
    pub destination: &'c Destination<'c>,
    /// Its statistics; without them factors are computed from the weights.
    pub statistics: Option<&'c ModelStatistics>,
    /// The factorization.
    pub factorization: Factorization,
    /// Text and options of the local reconstruction; `None`: no reconstruction.
    pub reconstruction: Option<(&'c Text, Descent)>,
    /// Options of the runtime.
    pub runtime: &'c RuntimeOptions,
}

/// Analyses `model` for rewrites with `options`.
///
/// # Errors
/// [`CompressError`] with the model's path if it is malformed.
pub fn analysis(model: &LoadedModel, options: &RewriteOptions) -> Result<Analysis, CompressError> {
    let (operators, target) = (options.operators.clone(), options.form.target());
    let analysis = Analysis::with(&model.model, operators, target);
    Ok(analysis.map_err(|cause| ConvertError::of(model, cause.into()))?)
}

/// The attentions that a rewrite of `model` with `options` would rewrite, with their ranks.
///
/// # Errors
/// [`CompressError`] with the model's path if the rewrite would be refused.
pub fn planned(
    model: &LoadedModel,
    analysis: &Analysis,
    options: &RewriteOptions,
) -> Result<Vec<Planned>, CompressError> {
    let refused = |cause: RewriteError| ConvertError::of(model, cause);
    Ok(plan(&model.model, analysis, options).map_err(refused)?)
}

impl Compressor<'_> {
    /// The model and its analysis.
    pub fn subject(&self) -> Analyzed<'_> {
        Analyzed {
            model: self.model,
            analysis: self.analysis,
        }
    }

    /// Checks whether the model can be rewritten with `options` and the statistics, before any work is done. Returns
    /// the ranks of each attention.
    ///
    /// # Errors
    /// [`CompressError`] with the model's path.
    pub fn check(&self, options: &RewriteOptions) -> Result<Vec<Planned>, CompressError> {
        let planned = planned(self.model, self.analysis, options)?;
        let Some(statistics) = self.statistics else {
            return Ok(planned);
        };
        let expected = identity(&self.model.model)
            .map_err(|cause| self.unobserved(CalibrateError::from(cause)))?;
        if statistics.model != expected {
            return Err(CompressError::OtherModel {
                found: statistics.model.clone(),
                expected,
            });
        }
        for one in &planned {
            if !statistics.layers.contains_key(&one.id) {
                return Err(CompressError::NoLayer {
                    layer: one.site.layer,
                    id: one.id.clone(),
                });
            }
        }
        Ok(planned)
    }

    /// Rewrites the model into a staging folder beside its destination.
    ///
    /// # Errors
    /// [`CompressError`]. Layers whose reconstruction is finished stay in a hidden folder, and the next run with the
    /// same inputs resumes from them.
    pub fn rewrite(
        &self,
        options: &RewriteOptions,
        observer: &mut Observer,
    ) -> Result<Compressed, CompressError> {
        // An exact rewrite without statistics is checked by the rewrite itself.
        let planned = match (&options.ranks, self.statistics) {
            (RankPlan::Full, None) => Vec::new(),
            _ => self.check(options)?,
        };
        let is_narrow = planned.iter().any(|p| options.form.loses(p.ranks, &p.site));
        let is_lossy = is_narrow || options.bits != CacheBits::Model;
        let reconstructs = is_narrow && options.form.is_reconstructed();
        let (mut done, mut unfinished) = (None, None);
        if let (Some((text, descent)), Some(statistics), true) =
            (self.reconstruction, self.statistics, reconstructs)
        {
            let inputs = work::WorkKey {
                statistics,
                text,
                factorization: self.factorization,
                options,
                descent,
                given: &self.runtime.given,
            };
            let target = output_path(&self.model.path, self.destination.out);
            let kept = inputs.folder(self.destination.work.or(target.parent()));
            let work = keep_work(&kept).map_err(|cause| ReconstructError::Io {
                path: kept.display().to_string(),
                cause,
            })?;
            let job = Job {
                model: self.subject(),
                text,
                statistics,
                factorization: self.factorization,
                options,
                descent,
                runtime: self.runtime,
            };
            let caches = planned.iter().filter(|p| p.site.shares.is_none());
            let layers = caches.count();
            let mut tell = |at| observer(reconstruction_event(at, layers));
            done = Some(reconstruct::run(&job, work.folder(), &mut tell)?);
            unfinished = Some(work);
        }
        let mut factorize =
            |view: &SiteView, wanted: Wanted| self.factors(view, wanted, done.as_ref(), options);
        let descent_steps = self.reconstruction.map_or(0, |(_, descent)| descent.steps);
        let mut describe = |done: &Rewritten| {
            is_lossy.then(|| note(options, self.factorization, descent_steps, done))
        };
        let staged = stage(
            (self.model, self.analysis),
            (self.destination.out, &self.destination.data),
            options,
            &mut factorize,
            &mut describe,
            &mut steps(Stage::Rewriting, observer),
        )?;
        let outcomes = done.map(|d| d.outcomes).unwrap_or_default();
        Ok(Compressed::new(staged, outcomes, unfinished))
    }

    /// The factors of one attention: the reconstructed ones, or else those of the factorization.
    fn factors(
        &self,
        view: &SiteView,
        wanted: Wanted,
        done: Option<&Reconstruction>,
        options: &RewriteOptions,
    ) -> Result<Made, Box<dyn std::error::Error + Send + Sync>> {
        let Some(sums) = self.statistics.and_then(|s| s.layers.get(view.id())) else {
            return by_weights(view, wanted);
        };
        if let Factorization::TransMla { fold } = self.factorization {
            let made = decoupled(view.site(), view.rotation(), sums, wanted.ranks, fold)?;
            let missing = "its statistics hold no keys before rotation";
            return made.map(Made::Decoupled).ok_or_else(|| missing.into());
        }
        let (site, scoring) = (view.site(), view.shared_scoring());
        let moments = moments(
            scoring.as_ref(),
            view.value_weight(),
            sums,
            self.factorization,
            options.form.cached_keys(),
            options.positions(),
        );
        let rows = RoundingInputs {
            scoring: scoring.as_ref(),
            statistics: sums,
            moments: &moments,
        };
        if options.form.cached_keys() == CachedKeys::WithValues {
            let centred = scoring.is_some() && self.factorization == Factorization::Calibrated;
            let made = joint_of(site, (&moments, centred), sums, wanted.ranks)?;
            let made = made.ok_or("the statistics hold no keys before rotation, because the rotation was not recognised: use the form absorbed")?;
            if wanted.bits == CacheBits::Model {
                return Ok(Made::Joint(made.into()));
            }
            let rotated = *view.rotation() != Rotated::No;
            let made = rows.rounded_together(made, rotated);
            let missing = "the range of its keys before rotation is not known, because its rotation is none that the calibration follows: leave out --cache-bits";
            return made.ok_or_else(|| missing.into());
        }
        let ready = done.map(|d| d.factors(view.id())).transpose()?;
        let factors = match ready.flatten() {
            Some(factors) => factors,
            None => from_moments(site, &moments, wanted.ranks)?,
        };
        if wanted.bits == CacheBits::Model {
            return Ok(factors.into());
        }
        let positions = options.positions();
        Ok(rows.rounded(factors, wanted.bits, options.form, positions)?)
    }

    /// Rewrites the model, measures it against the original on `text`, and removes it.
    ///
    /// # Errors
    /// [`CompressError`].
    pub fn measure(
        &self,
        options: &RewriteOptions,
        text: &Text,
        observer: &mut Observer,
    ) -> Result<(Rewritten, Quality), CompressError> {
        let compressed = self.rewrite(options, observer)?;
        let quality = compressed.quality(self.model, text, self.runtime, observer);
        let rewritten = compressed.staged.rewritten.clone();
        compressed.discard();
        Ok((rewritten, quality?))
    }

    /// The same compressor without reconstruction.
    #[must_use]
    pub fn without_reconstruction(&self) -> Self {
        Self {
            reconstruction: None,
            ..self.clone()
        }
    }

    /// The error of a model that cannot be calibrated.
    pub(crate) fn unobserved(&self, cause: CalibrateError) -> CompressError {
        CompressError::Calibrate {
            path: self.model.path.display().to_string(),
            cause: Box::new(cause),
        }
    }
}

fn reconstruction_event(at: reconstruct::ReconstructProgress, layers: usize) -> Event {
    let (stage, done, total) = match at {
        reconstruct::ReconstructProgress::Recording(done, total) => (Stage::Recording, done, total),
        reconstruct::ReconstructProgress::RecordingRewritten(done, total) => {
            (Stage::RecordingRewritten, done, total)
        }
        reconstruct::ReconstructProgress::Descending(done, total, error) => {
            (Stage::Reconstructing { layers, error }, done, total)
        }
    };
    Event { stage, done, total }
}
