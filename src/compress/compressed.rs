//! A rewritten model that does not have its name yet.

use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;

use crate::compress::convert::{ConvertError, Staged};
use crate::compress::error::CompressError;
use crate::compress::events::{Observer, Stage, steps};
use crate::files::load::{LoadError, LoadedModel, load};
use crate::fit::reconstruct::Outcome;
use crate::measure::on_text::measure;
use crate::measure::quality::Quality;
use crate::measure::text::Text;
use crate::runtime::RuntimeOptions;

/// A rewritten model that does not have its name yet; dropped, its files disappear.
pub struct Compressed {
    /// The model's files, and what was rewritten.
    pub staged: Staged,
    /// What the reconstruction did to each layer; empty without one.
    pub outcomes: Vec<Outcome>,
    /// Finished layers, of no use when the model has a name.
    work: Option<PathBuf>,
    /// The model as it was written, read once.
    written: OnceCell<LoadedModel>,
}

impl Compressed {
    pub(crate) fn new(staged: Staged, outcomes: Vec<Outcome>, work: Option<PathBuf>) -> Self {
        Self {
            staged,
            outcomes,
            work,
            written: OnceCell::new(),
        }
    }

    /// The model as it was written: read from disk the first time, then kept.
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

    /// Reads `text` with it and with the `original`.
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

    /// Gives the model its name, and removes what was kept for the case that the run is stopped.
    ///
    /// # Errors
    /// [`ConvertError`].
    pub fn publish(self) -> Result<PathBuf, ConvertError> {
        self.finish(Staged::publish)
    }

    /// Keeps the model in a folder `<name>.rejected` beside its name.
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
        // Files that are mapped cannot be renamed on every system.
        drop(self.written);
        let path = end(self.staged)?;
        remove(self.work);
        Ok(path)
    }

    /// Drops the model.
    pub fn discard(self) {
        remove(self.work);
    }
}

fn remove(folder: Option<PathBuf>) {
    // The model is complete; a hidden folder that cannot be removed does not make it a failure.
    let _ = folder.map_or(Ok(()), fs::remove_dir_all);
}
