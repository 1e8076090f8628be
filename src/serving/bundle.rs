//! Folders in, folders out: the models of a folder that are rewritten, and the files that go along.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use gqa2mla_passes::inspect;
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::recognize::reject::{Reason, Reject};
use gqa2mla_passes::recognize::site::Site;
use walkdir::WalkDir;

use crate::files::load::{LoadError, LoadedModel, load};
use crate::validate::ports::LanguageModel;

/// Configurations are texts; one larger than this is something else.
const LARGEST_CONFIG: u64 = 16 << 20;

/// The files of a folder, by what becomes of them. Paths are relative to it.
#[derive(Debug)]
pub struct Bundle {
    /// The folder.
    pub root: PathBuf,
    /// Models with a cache, which are rewritten.
    pub models: Vec<PathBuf>,
    /// Models with a cache that are left out, because another one was asked for.
    pub left_out: Vec<PathBuf>,
    /// All that goes along as it is.
    pub others: Vec<PathBuf>,
    loaded: BTreeMap<PathBuf, LoadedModel>,
}

/// Why a folder was not taken or not written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The system refuses.
    #[error("{path}: {action}: {cause}")]
    Io {
        /// The file or folder.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        cause: io::Error,
    },
    /// A model that cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No model at all.
    #[error("{0}: no .onnx file in this folder")]
    Empty(String),
    /// The model that was asked for is not among those with a cache.
    #[error("{path}: '{asked}' is no model with a cache in this folder; these are: {known}")]
    NotThere {
        /// The folder.
        path: String,
        /// What was asked for.
        asked: String,
        /// Those that are there.
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
    /// Reads the folder `root` and sorts its files. With `only`, one model is rewritten and others with a cache are left
    /// out. What lies under `out` belongs to the output.
    ///
    /// # Errors
    /// [`BundleError`] when a file cannot be read, or there is no model.
    pub fn read(root: &Path, only: Option<&Path>, out: &Path) -> Result<Self, BundleError> {
        let files = files(root, out)?;
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
        let (models, left_out) = match only {
            None => (concerned, Vec::new()),
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
        let goes_along = |path: &PathBuf| {
            let replaced = models.contains(path) || left_out.contains(path);
            !replaced && (!own_data.contains(path) || shared_data.contains(path))
        };
        Ok(Self {
            root: root.to_path_buf(),
            others: files.into_iter().filter(goes_along).collect(),
            loaded: loaded_models
                .into_iter()
                .filter(|(path, _)| models.contains(path))
                .collect(),
            models,
            left_out,
        })
    }

    /// The model `file`, one of [`Bundle::models`], as it was loaded to look for a cache; the caller gets it once.
    ///
    /// # Errors
    /// [`LoadError`] where it was given away before and cannot be read again.
    pub fn take(&mut self, file: &Path) -> Result<LoadedModel, LoadError> {
        let loaded = self.loaded.remove(file);
        loaded.map_or_else(|| load(&self.root.join(file)), Ok)
    }

    /// All files of the new folder, with `/` between the parts of their paths.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.models
            .iter()
            .chain(&self.others)
            .map(|p| slashed(p))
            .collect()
    }

    /// The texts of those of `names` that are there.
    ///
    /// # Errors
    /// [`BundleError::Io`], also for what is no text.
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

/// `/` between the parts, on every system.
fn slashed(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|p| p.to_string_lossy()).collect();
    parts.join("/")
}

/// Whether the model keeps a cache, or one half of it, as far as its interface and its attentions tell.
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

/// Every file under `root` but what version control and stopped runs keep there.
fn files(root: &Path, out: &Path) -> Result<Vec<PathBuf>, BundleError> {
    let out = fs::canonicalize(out).ok();
    let whole = fs::canonicalize(root).map_err(failed(root, "reading"))?;
    // A model that is rewritten in its own folder is no reason to see nothing of it.
    let out = out.filter(|out| *out != whole);
    let mut found = Vec::new();
    let walk = WalkDir::new(root).follow_links(true).sort_by_file_name();
    let mut entries = walk.into_iter();
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(|e| {
            let path = e.path().unwrap_or(root).to_path_buf();
            failed(&path, "reading")(e.into())
        })?;
        let name = entry.file_name().to_string_lossy();
        let hidden = entry.depth() > 0 && (name == ".git" || name.starts_with(".gqa2mla-"));
        let output = || fs::canonicalize(entry.path()).ok() == out && out.is_some();
        if entry.file_type().is_dir() && (hidden || output()) {
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
