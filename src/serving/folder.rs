//! A folder rewritten to a folder that the same stack serves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gqa2mla_passes::operators::Target;

use crate::compress::compressor::Destination;
use crate::compress::convert::ConvertError;
use crate::compress::error::CompressError;
use crate::compress::events::Observer;
use crate::compress::request::Request;
use crate::compress::run::{Compression, compress};
use crate::compress::widths::Widths;
use crate::files::foreign;
use crate::files::load::LoadError;
use crate::files::outputs::{OutputError, check_folder};
use crate::files::staging::{Staging, StagingError};
use crate::serving::bundle::{Bundle, BundleError};
use crate::serving::config::Edit;
use crate::serving::edits::{check, data_file, edited, place};
use crate::serving::error::ServingError;
use crate::serving::latent::Latent;
use crate::serving::stack::Stack;
use crate::validate::ValidateError;

/// What a folder is rewritten to, and how.
#[derive(Debug, Clone)]
pub struct FolderRequest<'f> {
    /// The folder.
    pub folder: &'f Path,
    /// The model to rewrite, relative to the folder; `None` rewrites every one with a cache.
    pub only: Option<&'f Path>,
    /// The folder to make.
    pub out: &'f Path,
    /// Whether files there that no rewrite wrote may be replaced.
    pub force: bool,
    /// The stacks whose configurations are edited; `None` goes by the files that are there.
    pub stacks: Option<Vec<Stack>>,
    /// How each model is compressed.
    pub compression: &'f Request<'f>,
}

/// A rewritten folder that does not have its name yet; dropped, it disappears.
pub struct RewrittenFolder {
    /// The original's files.
    pub bundle: Bundle,
    /// The stacks it is for.
    pub stacks: Vec<Stack>,
    /// What changed in their configurations.
    pub edits: Vec<Edit>,
    /// How many files are copied unchanged.
    pub copied: usize,
    /// The rewritten models, by their paths in the original folder.
    pub models: Vec<(PathBuf, Compression)>,
    staging: Staging,
}

/// Why there is no rewritten folder. Nothing is left under its name then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// The folder's files, or those of the output.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The output is an input, or somebody else's.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The output cannot be written.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// A model cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A model is not compressed.
    #[error(transparent)]
    Compress(#[from] CompressError),
    /// A model cannot take its place in the folder.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A rewritten model is no language model to the stacks.
    #[error("{path}: {cause}")]
    Interface {
        /// The model.
        path: String,
        /// Why not.
        cause: ValidateError,
    },
    /// A stack cannot serve the result.
    #[error("{path}: {cause}")]
    Serving {
        /// The folder.
        path: String,
        /// The stack's reason.
        cause: ServingError,
    },
    /// One configuration cannot describe all models.
    #[error(
        "{path}: the models of this folder need configurations that differ: rewrite one of them with --file"
    )]
    Differ {
        /// The folder.
        path: String,
    },
}

/// Rewrites every model with a cache into a new folder and edits the configurations so that the same stack serves it.
///
/// # Errors
/// [`FolderError`].
pub fn rewrite_folder(
    request: &FolderRequest,
    observer: &mut Observer,
) -> Result<RewrittenFolder, FolderError> {
    check_folder(request.folder, request.out, &[], request.force)?;
    let bundle = Bundle::read(request.folder, request.only, request.out);
    let mut bundle = bundle.map_err(|error| match (error, foreign::folder(request.folder)) {
        (BundleError::Empty(path), Some(advice)) => LoadError::Foreign { path, advice }.into(),
        (error, _) => FolderError::from(error),
    })?;
    let guess = || Stack::guess(&bundle.names());
    let stacks = request.stacks.clone().unwrap_or_else(guess);
    let files: Vec<&str> = stacks.iter().map(|s| s.file()).collect();
    let texts = bundle.texts(&files)?;
    let path = request.folder.display().to_string();
    let serving = |cause| FolderError::Serving {
        path: path.clone(),
        cause,
    };
    let uniform = request.compression.widths == Widths::Uniform;
    check(&stacks, &texts, uniform).map_err(serving)?;
    let written: Vec<PathBuf> = bundle
        .models
        .iter()
        .map(|model| place(&stacks, &texts, model))
        .chain(bundle.others.iter().cloned())
        .chain(files.iter().map(PathBuf::from))
        .collect();
    check_folder(request.folder, request.out, &written, request.force)?;
    let mut compression = request.compression.clone();
    // It reads heads and head size of each layer from the session, one shape for its keys and its values.
    if stacks.contains(&Stack::Genai) && compression.widths == Widths::Free {
        compression.widths = Widths::FreeLayers;
    }
    compression.options.one_width = stacks
        .iter()
        .any(|stack| matches!(stack, Stack::Genai | Stack::Optimum));
    let staging = Staging::folder(request.out, &bundle.root)?;
    let mut models = Vec::new();
    let mut changed: Option<(BTreeMap<String, String>, Vec<Edit>)> = None;
    for file in &bundle.models.clone() {
        let model = bundle.take(file)?;
        let out = staging.path(&place(&stacks, &texts, file));
        let destination = Destination {
            out: &out,
            data: data_file(&stacks, &model),
            work: request.out.parent(),
        };
        let compression = compress(&model, &destination, &compression, observer)?;
        let after = &compression.compressed.written()?.model.proto;
        let fused = request.compression.options.form.target() == Target::Gqa;
        let latent = Latent::of(&model, after, fused).map_err(|cause| FolderError::Interface {
            path: model.path.display().to_string(),
            cause,
        })?;
        let edited = edited(&stacks, &texts, &latent).map_err(serving)?;
        if changed.as_ref().is_some_and(|known| *known != edited) {
            return Err(FolderError::Differ { path });
        }
        changed = Some(edited);
        models.push((file.clone(), compression));
    }
    let (configurations, edits) = changed.unwrap_or_default();
    let known = |file: &&String| texts.contains_key(*file);
    let mut folder = RewrittenFolder {
        copied: bundle.others.len() - configurations.keys().filter(known).count(),
        bundle,
        stacks,
        edits,
        models,
        staging,
    };
    folder.add_others(&configurations)?;
    Ok(folder)
}

impl RewrittenFolder {
    /// Puts the other files beside the models: those of `configurations` with their new texts, the rest unchanged.
    fn add_others(
        &mut self,
        configurations: &BTreeMap<String, String>,
    ) -> Result<(), StagingError> {
        let is_new = |file: &str| configurations.contains_key(file);
        for file in &self.bundle.others {
            if !is_new(file.to_string_lossy().as_ref()) {
                self.staging.copy(file)?;
            }
        }
        for (file, text) in configurations {
            self.staging.write(Path::new(file), text.as_bytes())?;
        }
        Ok(())
    }

    /// Whether every model is accepted.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        self.models.iter().all(|(_, model)| model.accepted)
    }

    /// Gives the folder its name if every model is accepted, else keeps it as `<name>.rejected`; returns where it is.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn finish(self) -> Result<PathBuf, FolderError> {
        let accepted = self.is_accepted();
        for (_, model) in self.models {
            model.compressed.publish()?;
        }
        Ok(match accepted {
            true => self.staging.publish()?,
            false => self.staging.reject()?,
        })
    }
}
