//! A rewritten model in its staging folder, not published yet.

use std::cell::OnceCell;
use std::path::PathBuf;

use serde::Serialize;

use crate::compress::convert::{ConvertError, Staged};
use crate::compress::error::CompressError;
use crate::compress::events::{Observer, Stage, steps};
use crate::files::interrupted::Work;
use crate::files::load::{LoadError, LoadedModel, load};
#[cfg(feature = "train")]
use crate::files::save::DataFile;
use crate::fit::reconstruct::ReconstructedLayer;
use crate::measure::on_text::measure;
use crate::measure::quality::Quality;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;

/// The result of a distillation from the original.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distilled {
    /// Number of steps.
    pub steps: usize,
    /// KL from the original on the part of the text that was held out of the steps, before them, in nats.
    pub kl_before: f64,
    /// The same for the state that is kept.
    pub kl_after: f64,
}

/// A rewritten model in its staging folder, not published yet. Its files are removed when it is dropped.
pub struct Compressed {
    /// The staged files and the result of the rewrite.
    pub staged: Staged,
    /// The result of the reconstruction of each layer; empty without reconstruction.
    pub outcomes: Vec<ReconstructedLayer>,
    /// The result of the distillation, if there was one.
    pub distilled: Option<Distilled>,
    /// Whether a distillation was requested of a model without factors.
    pub has_no_factors: bool,
    /// The folder of finished layers, which is removed once the model is published.
    work: Option<Work>,
    /// The written model, loaded on first use.
    written: OnceCell<LoadedModel>,
}

impl Compressed {
    pub(crate) fn new(
        staged: Staged,
        outcomes: Vec<ReconstructedLayer>,
        work: Option<Work>,
    ) -> Self {
        Self {
            staged,
            outcomes,
            distilled: None,
            has_no_factors: false,
            work,
            written: OnceCell::new(),
        }
    }

    /// The model as written to the staging folder; loaded from there on first use.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn written(&self) -> Result<&LoadedModel, LoadError> {
        if let Some(model) = self.written.get() {
            return Ok(model);
        }
        let model = load(&self.staged.path())?;
        Ok(self.written.get_or_init(|| model))
    }

    /// Replaces the staged files by those of `model`, the same model with other weights.
    ///
    /// # Errors
    /// [`ConvertError`].
    #[cfg(feature = "train")]
    pub(super) fn replace(
        &mut self,
        model: &LoadedModel,
        data: &DataFile,
    ) -> Result<(), ConvertError> {
        self.written.take();
        self.staged.replace(model, data)
    }

    /// Measures its quality against the `original` on `text`.
    ///
    /// # Errors
    /// [`CompressError`].
    pub fn quality(
        &self,
        original: &LoadedModel,
        text: &Text,
        runtime: &RuntimeOptions,
        observer: &mut Observer,
    ) -> Result<Quality, CompressError> {
        let progress = &mut steps(Stage::Measuring, observer);
        Ok(measure(original, self.written()?, text, runtime, progress)?)
    }

    /// Moves the model to its output path and removes the folder of finished layers. Returns the path.
    ///
    /// # Errors
    /// [`ConvertError`].
    pub fn publish(self) -> Result<PathBuf, ConvertError> {
        self.finish(Staged::publish)
    }

    /// Moves the model to the folder `<name>.rejected` beside its output path. Returns the path.
    ///
    /// # Errors
    /// [`ConvertError`].
    pub fn reject(self) -> Result<PathBuf, ConvertError> {
        self.finish(Staged::reject)
    }

    fn finish(
        self,
        end: fn(Staged) -> Result<PathBuf, ConvertError>,
    ) -> Result<PathBuf, ConvertError> {
        // On some systems files cannot be renamed while they are mapped.
        drop(self.written);
        let path = end(self.staged)?;
        if let Some(work) = self.work {
            work.remove();
        }
        Ok(path)
    }

    /// Removes the model and the folder of finished layers.
    pub fn discard(self) {
        if let Some(work) = self.work {
            work.remove();
        }
    }
}
