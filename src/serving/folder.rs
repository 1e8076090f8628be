//! Rewriting of a model folder to a folder for the same serving stack.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gqa2mla_passes::operators::Target;

use crate::compress::compressor::Destination;
use crate::compress::convert::ConvertError;
use crate::compress::error::CompressError;
use crate::compress::events::Observer;
use crate::compress::foreseen::foresee_graph;
use crate::compress::request::Request;
use crate::compress::run::{Compression, compress};
use crate::compress::widths::Widths;
use crate::files::foreign;
use crate::files::interrupted::checkpoint_of;
use crate::files::load::{LoadError, LoadedModel};
use crate::files::outputs::{OutputError, check_folder};
use crate::files::save::DataFile;
use crate::files::staging::{Staging, StagingError};
use crate::fit::factors::Factorization;
use crate::serving::bundle::{Bundle, BundleError};
use crate::serving::config::Edit;
use crate::serving::edits::{check, check_join, data_file, edited, place};
use crate::serving::error::ServingError;
use crate::serving::latent::Latent;
use crate::serving::stack::Stack;
use crate::validate::ValidateError;

/// The options of the rewrite of a folder.
#[derive(Debug, Clone)]
pub struct FolderRequest<'f> {
    /// The folder.
    pub folder: &'f Path,
    /// The model to rewrite, relative to the folder; `None`: all models with a KV cache.
    pub only: Option<&'f Path>,
    /// The output folder.
    pub out: &'f Path,
    /// Whether files in the output folder that this tool did not write may be replaced.
    pub force: bool,
    /// The stacks whose configurations are edited; `None`: determined by the files of the folder.
    pub stacks: Option<Vec<Stack>>,
    /// The options of the compression of each model.
    pub compression: &'f Request<'f>,
}

/// A rewritten folder that is not published yet. It is removed if it is dropped.
pub struct RewrittenFolder {
    /// The files of the original folder.
    pub bundle: Bundle,
    /// The serving stacks.
    pub stacks: Vec<Stack>,
    /// The edits of their configurations.
    pub edits: Vec<Edit>,
    /// Number of files that are copied unchanged.
    pub copied: usize,
    /// The rewritten models, by their paths in the original folder.
    pub models: Vec<(PathBuf, Compression)>,
    staging: Staging,
}

/// Why a folder was not rewritten. Nothing is written to the output folder then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// The folder cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The output would replace an input, or files of another origin.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The output cannot be written.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// A model cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A model cannot be compressed.
    #[error(transparent)]
    Compress(#[from] CompressError),
    /// A model cannot be written to the folder.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The inputs and outputs of a model are not those of a language model.
    #[error("{path}: {cause}")]
    Interface {
        /// The model.
        path: String,
        /// The error.
        cause: ValidateError,
    },
    /// A stack cannot serve the rewritten model.
    #[error("{path}: {cause}")]
    Serving {
        /// The folder.
        path: String,
        /// The reason.
        cause: ServingError,
    },
    /// The models require different configurations.
    #[error(
        "{path}: the models of this folder need configurations that differ: rewrite one of them with --file"
    )]
    Differ {
        /// The folder.
        path: String,
    },
}

/// The new texts of configurations by file name, and their edits.
pub(super) type Edited = (BTreeMap<String, String>, Vec<Edit>);

/// A folder and a request that have been checked, before anything is computed.
pub(super) struct Checked<'f> {
    /// The files of the folder.
    pub bundle: Bundle,
    /// The serving stacks.
    pub stacks: Vec<Stack>,
    /// The configurations of the stacks, by file name.
    pub texts: BTreeMap<String, String>,
    /// The options of the compression of each model, adapted to the stacks.
    pub compression: Request<'f>,
}

impl<'f> Checked<'f> {
    /// Checks `request` against the files of its folder.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn of(request: &FolderRequest<'f>) -> Result<Self, FolderError> {
        check_folder(request.folder, request.out, &[], request.force)?;
        let bundle = Bundle::read(request.folder, request.only);
        let bundle = bundle.map_err(|error| match (error, foreign::folder(request.folder)) {
            (BundleError::Empty(path), Some(advice)) => LoadError::Foreign { path, advice }.into(),
            (error, _) => FolderError::from(error),
        })?;
        let guess = || Stack::guess(&bundle.names());
        let stacks = request.stacks.clone().unwrap_or_else(guess);
        let files: Vec<&str> = stacks.iter().map(|s| s.file()).collect();
        let texts = bundle.texts(&files)?;
        let serving = |cause| FolderError::Serving {
            path: request.folder.display().to_string(),
            cause,
        };
        let uniform = request.compression.widths == Widths::Uniform;
        check(&stacks, &texts, uniform).map_err(serving)?;
        // TransMLA caches one head of rotated keys, and a latent of another width.
        let transmla = matches!(
            request.compression.factorization,
            Some(Factorization::TransMla { .. })
        );
        let alike = |stack: &&Stack| matches!(stack, Stack::Genai | Stack::Optimum);
        if let Some(stack) = stacks.iter().find(alike).filter(|_| transmla) {
            return Err(serving(ServingError::Refused {
                stack: stack.name(),
                reason: "it takes keys and values of one width, and TransMLA's differ: give a .onnx file as MODEL and as OUT, or other --factors".to_owned(),
            }));
        }
        check_join(&stacks, request.compression.options.join).map_err(serving)?;
        let models = bundle.models.iter();
        let placed: Vec<PathBuf> = models.map(|model| place(&stacks, &texts, model)).collect();
        let mut names = BTreeSet::new();
        if let Some(twice) = placed.iter().find(|path| !names.insert(*path)) {
            return Err(serving(ServingError::Refused {
                stack: Stack::Triton.name(),
                reason: format!(
                    "two models of the folder would be written to {}: rewrite one of them with --file",
                    twice.display()
                ),
            }));
        }
        let written: Vec<PathBuf> = placed
            .into_iter()
            .flat_map(with_data)
            .chain(bundle.others.iter().cloned())
            .chain(files.iter().map(PathBuf::from))
            .collect();
        check_folder(request.folder, request.out, &written, request.force)?;
        let mut compression = request.compression.clone();
        // onnxruntime-genai reads one shape for the keys and the values of each layer from the session.
        if stacks.contains(&Stack::Genai) && compression.widths == Widths::Free {
            compression.widths = Widths::FreeLayers;
        }
        compression.options.one_width = stacks
            .iter()
            .any(|stack| matches!(stack, Stack::Genai | Stack::Optimum));
        Ok(Self {
            bundle,
            stacks,
            texts,
            compression,
        })
    }

    /// The data file of the rewritten `model`, the file `path` of the folder.
    ///
    /// # Errors
    /// [`FolderError::Serving`] if a stack requires a name that is taken.
    pub fn data_file(&self, path: &Path, model: &LoadedModel) -> Result<DataFile, FolderError> {
        let data = data_file(&self.stacks, (path, model), &self.bundle.others);
        data.map_err(|cause| FolderError::Serving {
            path: self.bundle.root.display().to_string(),
            cause,
        })
    }

    /// Checks, before anything is computed, whether the stacks can serve what is made of `models`. What the compression
    /// itself refuses is left to it.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn check_served(&self, models: &[(PathBuf, LoadedModel)]) -> Result<(), FolderError> {
        let mut expected = None;
        for (path, model) in models {
            self.data_file(path, model)?;
            if let Ok(after) = foresee_graph(model, &self.compression) {
                self.edit(&mut expected, model, &after)?;
            }
        }
        Ok(())
    }

    /// Makes the configurations for the model that was made of `before`; those of all models of the folder have to agree.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn edit(
        &self,
        changed: &mut Option<Edited>,
        before: &LoadedModel,
        after: &LoadedModel,
    ) -> Result<(), FolderError> {
        let fused = self.compression.options.form.target() == Target::Gqa;
        let latent = Latent::of(before, after, fused).map_err(|cause| FolderError::Interface {
            path: before.path.display().to_string(),
            cause,
        })?;
        let path = self.bundle.root.display().to_string();
        let edited = match edited(&self.stacks, &self.texts, &latent) {
            Ok(edited) => edited,
            Err(cause) => return Err(FolderError::Serving { path, cause }),
        };
        match changed {
            Some(known) if *known != edited => Err(FolderError::Differ { path }),
            _ => {
                *changed = Some(edited);
                Ok(())
            }
        }
    }
}

/// A model file and the possible names of its data file.
fn with_data(model: PathBuf) -> [PathBuf; 3] {
    let ending = |ending: &str| {
        let mut name = model.clone().into_os_string();
        name.push(ending);
        PathBuf::from(name)
    };
    let data = [".data", "_data"].map(ending);
    let [named, fetched] = data;
    [model, named, fetched]
}

/// Rewrites the models with a KV cache into a new folder, and edits the configurations of the serving stacks.
///
/// # Errors
/// [`FolderError`].
pub fn rewrite_folder(
    request: &FolderRequest,
    observer: &mut Observer,
) -> Result<RewrittenFolder, FolderError> {
    let mut checked = Checked::of(request)?;
    let originals = checked.bundle.take()?;
    checked.check_served(&originals)?;
    let staging = Staging::folder(request.out, &checked.bundle.root)?;
    let mut models = Vec::new();
    let mut changed: Option<Edited> = None;
    for (file, model) in originals {
        let out = staging.path(&place(&checked.stacks, &checked.texts, &file));
        let destination = Destination {
            out: &out,
            data: checked.data_file(&file, &model)?,
            work: request.out.parent(),
            checkpoint: checkpoint_of(request.out),
        };
        let compression = compress(&model, &destination, &checked.compression, observer)?;
        checked.edit(&mut changed, &model, compression.compressed.written()?)?;
        models.push((file, compression));
    }
    let Checked {
        bundle,
        stacks,
        texts,
        ..
    } = checked;
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
    /// Adds the other files to the folder: those of `configurations` with their new texts, the rest unchanged.
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

    /// Publishes the folder if every model is accepted, else moves it to `<name>.rejected`; returns its path.
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
