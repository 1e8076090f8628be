//! One rewrite with everything it needs: statistics, reconstruction, and the rewrite itself.

use std::path::Path;

use gqa2mla_passes::factor::Made;
use gqa2mla_passes::factor::reconstruct::Descent;
use gqa2mla_passes::pipeline::factorize::Wanted;
use gqa2mla_passes::pipeline::{Planned, plan};
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
use crate::fit::factors::{Factorization, decoupled, from_moments, moments};
use crate::fit::reconstruct::error::ReconstructError;
use crate::fit::reconstruct::{self, Job, Reconstruction};
use crate::fit::statistics::ModelStatistics;
use crate::measure::quality::Quality;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;

/// Where a rewritten model goes.
#[derive(Debug, Clone)]
pub struct Destination<'d> {
    /// A path that ends in `.onnx`, or the folder that gets a model of the input's name. Models are written beside it
    /// and take the name when they are accepted.
    pub out: &'d Path,
    /// Where the weights go.
    pub data: DataFile,
    /// The folder in which unfinished work is kept for the next run; `None` is that of the output.
    pub work: Option<&'d Path>,
}

/// What all rewrites of one model have in common.
#[derive(Clone)]
pub struct Compressor<'c> {
    /// The model before.
    pub model: &'c LoadedModel,
    /// Its analysis, with operators spelled out for the form of every rewrite: see [`analysis`].
    pub analysis: &'c Analysis,
    /// Where the models go.
    pub destination: &'c Destination<'c>,
    /// Its statistics; without them factors come from the weights.
    pub statistics: Option<&'c ModelStatistics>,
    /// Which factors.
    pub factorization: Factorization,
    /// Text to reconstruct on, and how; `None` leaves the factors as they are.
    pub reconstruction: Option<(&'c Text, Descent)>,
    /// Where the model runs.
    pub runtime: &'c RuntimeOptions,
}

/// Analyses `model` once for all of its rewrites with `options`.
///
/// # Errors
/// [`CompressError`] with the model's path when it is not well-formed.
pub fn analysis(model: &LoadedModel, options: &RewriteOptions) -> Result<Analysis, CompressError> {
    let (operators, target) = (options.operators.clone(), options.form.target());
    let analysis = Analysis::with(&model.model, operators, target);
    Ok(analysis.map_err(|cause| ConvertError::Rewrite {
        path: model.path.display().to_string(),
        cause: Box::new(cause.into()),
    })?)
}

impl Compressor<'_> {
    /// The model and its analysis.
    pub fn subject(&self) -> Analyzed<'_> {
        Analyzed {
            model: self.model,
            analysis: self.analysis,
        }
    }

    /// Refuses what cannot be done as asked, before any work is put into it; returns the widths of each attention.
    ///
    /// # Errors
    /// [`CompressError`] with the model's path.
    pub fn check(&self, options: &RewriteOptions) -> Result<Vec<Planned>, CompressError> {
        let model = &self.model.model;
        let refused = |cause: RewriteError| ConvertError::Rewrite {
            path: self.model.path.display().to_string(),
            cause: Box::new(cause),
        };
        let planned = plan(model, self.analysis, options).map_err(refused)?;
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

    /// Rewrites the model into a folder beside its destination.
    ///
    /// # Errors
    /// [`CompressError`]; a reconstruction that was begun stays in a hidden folder beside the output, and the next run
    /// with the same inputs goes on with it.
    pub fn rewrite(
        &self,
        options: &RewriteOptions,
        observer: &mut Observer,
    ) -> Result<Compressed, CompressError> {
        // An exact rewrite without data is refused by the rewrite itself, where it has to be.
        let planned = match (&options.ranks, self.statistics) {
            (RankPlan::Full, None) => Vec::new(),
            _ => self.check(options)?,
        };
        let is_lossy = planned.iter().any(|p| options.form.loses(p.ranks, &p.site));
        let reconstructs = is_lossy && options.form.is_exact_at_full_rank();
        let (mut done, mut folder) = (None, None);
        if let (Some((text, descent)), Some(statistics), true) =
            (self.reconstruction, self.statistics, reconstructs)
        {
            let inputs = work::Inputs {
                statistics,
                text,
                factorization: self.factorization,
                options,
                descent,
            };
            let target = output_path(&self.model.path, self.destination.out);
            let kept = inputs.folder(self.destination.work.or(target.parent()));
            keep_work(&kept).map_err(|cause| ReconstructError::Io {
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
            let mut tell = |at| observer(reconstruction_event(at));
            done = Some(reconstruct::run(&job, &kept, &mut tell)?);
            folder = Some(kept);
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
        Ok(Compressed::new(staged, outcomes, folder))
    }

    /// The factors of one attention: reconstructed ones where there are any, else by the factorization.
    fn factors(
        &self,
        view: &SiteView,
        wanted: Wanted,
        done: Option<&Reconstruction>,
        options: &RewriteOptions,
    ) -> Result<Made, Box<dyn std::error::Error + Send + Sync>> {
        let ready = done.map(|d| d.factors(view.id())).transpose()?;
        if let Some(factors) = ready.flatten() {
            return Ok(factors.into());
        }
        let Some(sums) = self.statistics.and_then(|s| s.layers.get(view.id())) else {
            return by_weights(view, wanted);
        };
        if let Factorization::TransMla { fold } = self.factorization {
            let made = decoupled(view.site(), view.rotation(), sums, wanted.ranks, fold)?;
            let missing = "its statistics hold no keys before rotation";
            return made.map(Made::Decoupled).ok_or_else(|| missing.into());
        }
        let moments = moments(
            view.site(),
            view.scoring().as_ref(),
            view.output_projection().as_ref(),
            sums,
            self.factorization,
            options.form.cached_keys(),
            options.positions(),
        );
        Ok(from_moments(view.site(), &moments, wanted.ranks)?.into())
    }

    /// Rewrites the model, reads `text` with it and with the original, and drops it again.
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

    /// The same without reconstruction.
    #[must_use]
    pub fn without_reconstruction(&self) -> Self {
        Self {
            reconstruction: None,
            ..self.clone()
        }
    }

    /// The error of a model that cannot be observed.
    pub(crate) fn unobserved(&self, cause: CalibrateError) -> CompressError {
        CompressError::Calibrate {
            path: self.model.path.display().to_string(),
            cause: Box::new(cause),
        }
    }
}

fn reconstruction_event(at: reconstruct::Progress) -> Event {
    let (stage, done, total) = match at {
        reconstruct::Progress::Recording(done, total) => (Stage::Recording, done, total),
        reconstruct::Progress::Descending(done, total, error) => {
            (Stage::Reconstructing { error }, done, total)
        }
    };
    Event { stage, done, total }
}
