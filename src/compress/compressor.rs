//! One rewrite with everything it needs: statistics, reconstruction, and the rewrite itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use gqa2mla_passes::analysis::identity::SiteId;
use gqa2mla_passes::factor::Made;
use gqa2mla_passes::factor::reconstruct::Descent;
use gqa2mla_passes::onnx::StringStringEntryProto;
use gqa2mla_passes::pipeline::factorize::Wanted;
use gqa2mla_passes::pipeline::{Planned, plan};
use gqa2mla_passes::{
    Analysis, RankPlan, RewriteError, RewriteOptions, Rewritten, SiteView, by_weights,
};
use serde_json::json;

use crate::compress::convert::{ConvertError, Staged, stage};
use crate::files::load::{LoadError, LoadedModel, load};
use crate::files::save::{DataFile, output_path};
use crate::files::tensors::ArraysError;
use crate::fit::calibrate::{CalibrateError, ModelStatistics};
use crate::fit::factors::{Factorization, decoupled, from_moments, moments};
use crate::fit::reconstruct::{self, Job, Outcome, ReconstructError, Reconstruction};
use crate::measure::measure::measure;
use crate::measure::quality::Quality;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;
use crate::validate::ValidateError;

/// Key of the model's metadata under which an approximation says how it was made.
pub const METADATA: &str = "gqa2mla";

/// What rewrites of one model have in common.
#[derive(Clone)]
pub struct Compressor<'c> {
    /// The model before.
    pub model: &'c LoadedModel,
    /// Its statistics; without them factors come from the weights.
    pub statistics: Option<&'c ModelStatistics>,
    /// Which factors.
    pub factorization: Factorization,
    /// Text to reconstruct on, and how; nothing leaves the factors as they are.
    pub reconstruction: Option<(&'c Text, Descent)>,
    /// Where the model runs.
    pub runtime: &'c RuntimeOptions,
    /// Where the weights of what is written go.
    pub data: DataFile,
    /// The folder in which unfinished work is kept for the next run; nothing means that of the output.
    pub work: Option<&'c Path>,
}

/// A rewritten model that has not got its name yet.
pub struct Compressed {
    /// The model.
    pub staged: Staged,
    /// What the reconstruction did to each layer; empty without one.
    pub outcomes: Vec<Outcome>,
    work: Option<PathBuf>,
}

/// Why there is no rewritten model.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// The rewrite.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The reconstruction.
    #[error(transparent)]
    Reconstruct(#[from] ReconstructError),
    /// Statistics that were made from another model.
    #[error(
        "the statistics belong to another model ({found}, this one is {expected}): make them with `gqa2mla calibrate` from this very file"
    )]
    OtherModel {
        /// The model of the statistics.
        found: String,
        /// The model.
        expected: String,
    },
    /// Statistics without an attention of the model.
    #[error(
        "the statistics have no entry for layer {layer} ('{id}'): make them again with this version"
    )]
    NoLayer {
        /// The layer.
        layer: usize,
        /// Its id.
        id: SiteId,
    },
    /// Watching the model.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// The rewritten model cannot be read again.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The models cannot be measured.
    #[error(transparent)]
    Measure(#[from] ValidateError),
}

/// How far a rewrite is.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// As [`reconstruct::Progress`].
    Reconstructing(reconstruct::Progress),
    /// Attentions rewritten, of how many.
    Rewriting(usize, usize),
}

impl Compressor<'_> {
    /// Refuses what cannot be done as asked, before any work is put into it; gives the widths of each attention.
    ///
    /// # Errors
    /// [`CompressError`] with the model's path.
    pub fn check(&self, options: &RewriteOptions) -> Result<Vec<Planned>, CompressError> {
        let model = &self.model.model;
        let analysis = Analysis::of(model, options.form.target());
        let planned = analysis
            .map_err(RewriteError::from)
            .and_then(|analysis| plan(model, &analysis, options))
            .map_err(|cause| self.refused(cause))?;
        if let Some(statistics) = self.statistics {
            let expected = crate::files::identity::identity(&self.model.model)
                .map_err(CalibrateError::from)?;
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
        }
        Ok(planned)
    }

    fn refused(&self, cause: RewriteError) -> CompressError {
        ConvertError::Rewrite {
            path: self.model.path.display().to_string(),
            cause: Box::new(cause),
        }
        .into()
    }

    /// Rewrites the model into a folder beside `out`.
    ///
    /// # Errors
    /// [`CompressError`]; a reconstruction that was begun stays in a hidden folder beside `out`, and the next run with
    /// the same inputs goes on with it.
    pub fn rewrite(
        &self,
        out: &Path,
        options: &RewriteOptions,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Compressed, CompressError> {
        // An exact rewrite without data is refused by the rewrite itself, where it has to be.
        let planned = match (&options.ranks, self.statistics) {
            (RankPlan::Full, None) => Vec::new(),
            _ => self.check(options)?,
        };
        let lossy = |p: &Planned| {
            !options.form.is_exact_at_full_rank()
                || p.ranks.key.min(p.ranks.value) < p.site.full_rank()
        };
        let mut done: Option<Reconstruction> = None;
        let mut work = None;
        if let (Some((text, descent)), Some(statistics), true) = (
            self.reconstruction,
            self.statistics,
            planned.iter().any(lossy) && options.form.is_exact_at_full_rank(),
        ) {
            let folder = self.work_folder(out, options, text, descent, statistics);
            let job = Job {
                model: self.model,
                text,
                statistics,
                factorization: self.factorization,
                options,
                descent,
                runtime: self.runtime,
            };
            done = Some(reconstruct::run(&job, &folder, &mut |p| {
                progress(Progress::Reconstructing(p));
            })?);
            work = Some(folder);
        }
        let mut factorize = |view: &SiteView,
                             wanted: Wanted|
         -> Result<Made, Box<dyn std::error::Error + Send + Sync>> {
            let ready = done.as_ref().map(|d| d.factors(view.id())).transpose()?;
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
            );
            Ok(from_moments(view.site(), &moments, wanted.ranks)?.into())
        };
        let is_lossy = planned.iter().any(lossy);
        let mut note = |done: &Rewritten| is_lossy.then(|| self.note(options, done));
        let staged = stage(
            &self.model.path,
            (out, &self.data),
            options,
            &mut factorize,
            &mut note,
            &mut |n, of| progress(Progress::Rewriting(n, of)),
        )?;
        Ok(Compressed {
            staged,
            outcomes: done.map(|d| d.outcomes).unwrap_or_default(),
            work,
        })
    }

    /// Rewrites the model beside `out`, reads `text` with it and with the original, and drops it again.
    ///
    /// # Errors
    /// [`CompressError`].
    pub fn measure(
        &self,
        out: &Path,
        options: &RewriteOptions,
        text: &Text,
    ) -> Result<(Rewritten, Quality), CompressError> {
        let compressed = self.rewrite(out, options, &mut |_| {})?;
        let quality = compressed.quality(self.model, text, self.runtime, &mut |_, _| {});
        let rewritten = compressed.staged.rewritten.clone();
        compressed.discard();
        Ok((rewritten, quality?))
    }

    /// What an approximation says of itself in the model's metadata.
    fn note(&self, options: &RewriteOptions, done: &Rewritten) -> StringStringEntryProto {
        let steps = self.reconstruction.map_or(0, |(_, d)| d.steps);
        let ratio = match options.ranks {
            RankPlan::Ratio(ratio) => Some(ratio),
            _ => None,
        };
        let value = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "factors": self.factorization.name(),
            "reconstruction_steps": steps,
            "cache_ratio": ratio,
            "layers": done.sites.iter().map(|site| json!({
                "layer": site.site.layer, "key_rank": site.ranks.key, "value_rank": site.ranks.value,
                "predicted_key_loss": site.key.loss, "predicted_value_loss": site.value.loss,
            })).collect::<Vec<_>>(),
        });
        StringStringEntryProto {
            key: Some(METADATA.to_owned()),
            value: Some(value.to_string()),
        }
    }

    /// Where finished layers are kept: another place for other inputs.
    fn work_folder(
        &self,
        out: &Path,
        options: &RewriteOptions,
        text: &Text,
        descent: Descent,
        statistics: &ModelStatistics,
    ) -> PathBuf {
        let target = output_path(&self.model.path, out);
        let mut hasher = crc32fast::Hasher::new();
        text.ids
            .iter()
            .for_each(|id| hasher.update(&id.to_le_bytes()));
        let inputs = format!(
            "{} {} {} {:?} {:?} {:?} {descent:?} {}",
            statistics.model,
            statistics.text,
            statistics.sequences,
            self.factorization,
            options.form,
            options.ranks,
            text.length
        );
        hasher.update(inputs.as_bytes());
        let name = format!(".gqa2mla-work-{:08x}", hasher.finalize());
        match self.work.or(target.parent()) {
            Some(parent) if !parent.as_os_str().is_empty() => parent.join(name),
            _ => PathBuf::from(name),
        }
    }
}

impl Compressed {
    /// Reads `text` with it and with the `original`.
    ///
    /// # Errors
    /// [`CompressError`].
    pub fn quality(
        &self,
        original: &LoadedModel,
        text: &Text,
        runtime: &RuntimeOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Quality, CompressError> {
        let rewritten = load(&self.staged.path())?;
        Ok(measure(original, &rewritten, text, runtime, progress)?)
    }

    /// Gives the model its name, and removes what was kept for a run that would have been stopped.
    ///
    /// # Errors
    /// [`ConvertError`].
    pub fn publish(self) -> Result<PathBuf, ConvertError> {
        let path = self.staged.publish()?;
        remove(self.work.as_deref());
        Ok(path)
    }

    /// Keeps the model beside its name.
    ///
    /// # Errors
    /// [`ConvertError`].
    pub fn reject(self) -> Result<PathBuf, ConvertError> {
        let path = self.staged.reject()?;
        remove(self.work.as_deref());
        Ok(path)
    }

    /// Drops the model.
    pub fn discard(self) {
        remove(self.work.as_deref());
    }
}

fn remove(folder: Option<&Path>) {
    // The model is complete; a hidden folder that cannot be removed is no reason to call it a failure.
    let _: io::Result<()> = folder.map_or(Ok(()), fs::remove_dir_all);
}

impl From<ArraysError> for CompressError {
    fn from(error: ArraysError) -> Self {
        ReconstructError::from(error).into()
    }
}
