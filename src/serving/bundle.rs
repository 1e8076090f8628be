//! The files of a model folder: the models to rewrite, and the files to copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use gqa2mla_passes::inspect;
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::recognize::reject::{Reason, Reject};
use gqa2mla_passes::recognize::site::Site;
use walkdir::WalkDir;

use crate::files::foreign;
use crate::files::load::{LoadError, LoadedModel, load};
use crate::files::location::own_folders;
use crate::files::origin::is_rewritten;
use crate::validate::ports::LanguageModel;

/// Largest size of a configuration file in bytes.
const LARGEST_CONFIG: u64 = 16 << 20;

/// The files of a folder, by their treatment. Paths are relative to the folder.
#[derive(Debug)]
pub struct Bundle {
    /// The folder.
    pub root: PathBuf,
    /// Models with a KV cache, which are rewritten.
    pub models: Vec<PathBuf>,
    /// Files that are neither rewritten nor copied.
    pub left_out: Vec<LeftOut>,
    /// Files to copy unchanged.
    pub others: Vec<PathBuf>,
    loaded: BTreeMap<PathBuf, LoadedModel>,
}

/// A file that the new folder does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its path, relative to the folder.
    pub file: PathBuf,
    /// Why.
    pub why: WhyLeftOut,
}

/// Why a file is left out of the new folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyLeftOut {
    /// Another model with a KV cache was selected.
    NotSelected,
    /// This tool wrote the model, and there are others.
    Rewritten,
    /// It has the weights of the original for another framework, which the edited configuration does not fit.
    OtherFramework,
}

impl LeftOut {
    /// The paths of the files `left`.
    #[must_use]
    pub fn files(left: &[Self]) -> Vec<&Path> {
        left.iter().map(|left| left.file.as_path()).collect()
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            WhyLeftOut::NotSelected => "",
            WhyLeftOut::Rewritten => ", which gqa2mla wrote",
            WhyLeftOut::OtherFramework => {
                ", which has the original's weights for another framework"
            }
        };
        write!(f, "{}{why}", self.file.display())
    }
}

/// Why a folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file cannot be read.
    #[error("{path}: {action}: {cause}")]
    Io {
        /// The file or folder.
        path: String,
        /// The failed action.
        action: &'static str,
        /// The I/O error.
        cause: io::Error,
    },
    /// A model cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The folder has no model.
    #[error("{0}: no .onnx file in this folder")]
    Empty(String),
    /// A link leads out of the folder.
    #[error(
        "{path}: it is a link to {real}, outside the folder: replace it by the file, or remove it"
    )]
    Outside {
        /// The link.
        path: String,
        /// Its target.
        real: String,
    },
    /// The selected model does not exist or has no KV cache.
    #[error("{path}: '{asked}' is no model with a cache in this folder; these are: {known}")]
    NotThere {
        /// The folder.
        path: String,
        /// The selected path.
        asked: String,
        /// The models with a KV cache.
        known: String,
    },
}

fn failed(path: &Path, action: &'static str) -> impl Fn(io::Error) -> BundleError + use<> {
    let path = path.display().to_string();
    move |cause| BundleError::Io {
        path: path.clone(),
        action,
        cause,
    }
}

impl Bundle {
    /// Reads and classifies the files of the folder `root`. With `only`, one model is rewritten and others with a KV
    /// cache are left out. Without it, models that this tool wrote are left out where there are others.
    ///
    /// # Errors
    /// [`BundleError`] if a file cannot be read, or there is no model.
    pub fn read(root: &Path, only: Option<&Path>) -> Result<Self, BundleError> {
        let files = files(root)?;
        let is_model = |path: &&PathBuf| path.extension().is_some_and(|e| e == "onnx");
        let all: Vec<PathBuf> = files.iter().filter(is_model).cloned().collect();
        if all.is_empty() {
            return Err(BundleError::Empty(root.display().to_string()));
        }
        let (mut concerned, mut own_data) = (Vec::new(), BTreeSet::new());
        let mut shared_data = BTreeSet::new();
        let mut loaded_models = BTreeMap::new();
        for path in &all {
            let loaded = load(&root.join(path))?;
            let folder = path.parent().unwrap_or(Path::new(""));
            let data = loaded.sources.keys().map(|location| folder.join(location));
            if all.len() == 1 || holds_cache(&loaded.model) {
                concerned.push(path.clone());
                own_data.extend(data);
                loaded_models.insert(path.clone(), loaded);
            } else {
                shared_data.extend(data);
            }
        }
        let is_ours = |path: &PathBuf| {
            let loaded = loaded_models.get(path);
            loaded.is_some_and(|l: &LoadedModel| is_rewritten(&l.model.proto))
        };
        let why = match only {
            None => WhyLeftOut::Rewritten,
            Some(_) => WhyLeftOut::NotSelected,
        };
        let (models, unwanted) = match only {
            None if concerned.iter().all(is_ours) => (concerned, Vec::new()),
            None => concerned.into_iter().partition(|path| !is_ours(path)),
            Some(asked) if concerned.iter().any(|c| c == asked) => {
                concerned.into_iter().partition(|path| path == asked)
            }
            Some(asked) => {
                let known: Vec<String> = concerned.iter().map(|p| slashed(p)).collect();
                return Err(BundleError::NotThere {
                    path: root.display().to_string(),
                    asked: asked.display().to_string(),
                    known: known.join(", "),
                });
            }
        };
        let is_data = |path: &PathBuf| own_data.contains(path) || shared_data.contains(path);
        let foreign: Vec<PathBuf> = files
            .iter()
            .filter(|path| foreign::holds_weights(path) && !is_data(path))
            .cloned()
            .collect();
        let goes_along = |path: &PathBuf| {
            let replaced = models.contains(path) || unwanted.contains(path);
            let dropped = replaced || foreign.contains(path);
            !dropped && (!own_data.contains(path) || shared_data.contains(path))
        };
        let others = files.iter().filter(|path| goes_along(path)).cloned();
        let others = others.collect();
        let left = |why| move |file| LeftOut { file, why };
        let left_out = unwanted.into_iter().map(left(why));
        Ok(Self {
            root: root.to_path_buf(),
            others,
            loaded: loaded_models
                .into_iter()
                .filter(|(path, _)| models.contains(path))
                .collect(),
            models,
            left_out: left_out
                .chain(foreign.into_iter().map(left(WhyLeftOut::OtherFramework)))
                .collect(),
        })
    }

    /// Takes the models to rewrite out of the bundle, or loads them if they have been taken before.
    ///
    /// # Errors
    /// [`LoadError`] if one has to be loaded again and cannot be read.
    pub fn take(&mut self) -> Result<Vec<(PathBuf, LoadedModel)>, LoadError> {
        let mut loaded = std::mem::take(&mut self.loaded);
        let models = self.models.iter().map(|file| {
            let known = loaded.remove(file);
            let model = known.map_or_else(|| load(&self.root.join(file)), Ok)?;
            Ok((file.clone(), model))
        });
        models.collect()
    }

    /// The paths of all files of the new folder, with `/` as separator.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.models
            .iter()
            .chain(&self.others)
            .map(|p| slashed(p))
            .collect()
    }

    /// The contents of those files of `names` that exist.
    ///
    /// # Errors
    /// [`BundleError::Io`], also if a file is not UTF-8 text.
    pub fn texts(&self, names: &[&str]) -> Result<BTreeMap<String, String>, BundleError> {
        let mut texts = BTreeMap::new();
        for name in names {
            if !self.others.iter().any(|p| slashed(p) == *name) {
                continue;
            }
            let path = self.root.join(name);
            let read = failed(&path, "reading");
            if fs::metadata(&path).map_err(&read)?.len() > LARGEST_CONFIG {
                return Err(read(io::ErrorKind::FileTooLarge.into()));
            }
            let text = fs::read_to_string(&path).map_err(read)?;
            texts.insert((*name).to_owned(), text);
        }
        Ok(texts)
    }
}

/// The path with `/` as separator on every system.
fn slashed(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|p| p.to_string_lossy()).collect();
    parts.join("/")
}

/// Whether the model has a KV cache, or part of one, judged by its inputs and outputs and by its attentions.
fn holds_cache(model: &Model) -> bool {
    LanguageModel::of(&model.proto).is_ok_and(|s| !s.interface.caches.is_empty())
        || inspect(model).is_ok_and(|found| {
            let half = |r: &Reject| {
                matches!(
                    r.reason,
                    Reason::HalfCached | Reason::CacheNotReturned { .. }
                )
            };
            found.sites.iter().any(Site::is_cached) || found.rejects.iter().any(half)
        })
}

/// An error if `link` leads out of the folder `root` and of the cache of a model hub that it is in: what such a link points
/// to is not part of the model.
fn stays_inside(root: &Path, link: &Path) -> Result<(), BundleError> {
    let real = link.canonicalize().map_err(failed(link, "reading"))?;
    match own_folders(root)
        .iter()
        .any(|folder| real.starts_with(folder))
    {
        true => Ok(()),
        false => Err(BundleError::Outside {
            path: link.display().to_string(),
            real: real.display().to_string(),
        }),
    }
}

/// All files under `root`, except those of version control and of interrupted runs.
fn files(root: &Path) -> Result<Vec<PathBuf>, BundleError> {
    let mut found = Vec::new();
    let walk = WalkDir::new(root).follow_links(true).sort_by_file_name();
    let mut entries = walk.into_iter();
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(|e| {
            let path = e.path().unwrap_or(root).to_path_buf();
            failed(&path, "reading")(e.into())
        })?;
        if entry.depth() > 0 && entry.path_is_symlink() {
            stays_inside(root, entry.path())?;
        }
        let name = entry.file_name().to_string_lossy();
        let hidden = entry.depth() > 0 && (name == ".git" || name.starts_with(".gqa2mla-"));
        if entry.file_type().is_dir() && hidden {
            entries.skip_current_dir();
        } else if entry.file_type().is_file()
            && !hidden
            && let Ok(relative) = entry.path().strip_prefix(root)
        {
            found.push(relative.to_path_buf());
        }
    }
    Ok(found)
}
