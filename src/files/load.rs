//! Loading of models, with memory-mapped weights.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use gqa2mla_passes::graph::order;
use gqa2mla_passes::onnx::ModelProto;
use gqa2mla_passes::onnx::stored::{External, Model, TensorError, byte_size, visit_tensors};
use prost::Message;

use crate::files::foreign;
use crate::files::location::data_file;
use crate::files::mapped::Source;

/// How deep below a folder models are looked for, and how many are named, in a message.
const DEEPEST: usize = 3;
const MOST_NAMED: usize = 5;

/// The newest supported IR version.
const NEWEST_IR: i64 = 14;

/// A model and its files.
#[derive(Debug, Clone)]
pub struct LoadedModel {
    /// The decoded messages and the mapped data files.
    pub model: Model,
    /// The .onnx file.
    pub path: PathBuf,
    /// The mapped .onnx file; inline weights are slices of it.
    pub source: Source,
    /// The mapped data file of each location.
    pub sources: BTreeMap<String, Source>,
}

/// Why a model could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file does not exist or cannot be read.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: String,
        /// The I/O error.
        cause: io::Error,
    },
    /// The path is a model in another format, or the name of a model on a hub.
    #[error("{path}: {advice}")]
    Foreign {
        /// The path.
        path: String,
        /// Its format, and what to do.
        advice: String,
    },
    /// The file is a model that would lose something.
    #[error("{path}: {detail}")]
    Newer {
        /// The file.
        path: String,
        /// The reason, and what to do.
        detail: String,
    },
    /// The folder does not contain exactly one model.
    #[error("{path}: expected one .onnx file in this folder, found {found}")]
    Folder {
        /// The folder.
        path: String,
        /// The .onnx files in it, and what to do.
        found: String,
        /// The .onnx files in it.
        models: Vec<PathBuf>,
    },
    /// The file is not an ONNX model.
    #[error("{path}: not an ONNX model: {detail}")]
    NotOnnx {
        /// The file.
        path: String,
        /// The reason.
        detail: String,
    },
    /// A data file is missing or its location is not allowed.
    #[error("{path}: tensor '{tensor}' is stored in '{location}', which cannot be used: {reason}")]
    Location {
        /// The model.
        path: String,
        /// The tensor.
        tensor: String,
        /// The location.
        location: String,
        /// The reason.
        reason: String,
    },
    /// The bytes of a tensor cannot be read.
    #[error("{path}: {cause}")]
    Tensor {
        /// The model.
        path: String,
        /// What is wrong.
        cause: TensorError,
    },
}

impl LoadedModel {
    /// Adds the data file at `path` under `location`, for new tensors.
    pub fn add_file(&mut self, location: &str, path: &Path) -> Result<(), LoadError> {
        let source = Source::map(path).map_err(|cause| LoadError::Io {
            path: path.display().to_string(),
            cause,
        })?;
        self.model
            .files
            .insert(location.to_owned(), source.bytes().clone());
        self.sources.insert(location.to_owned(), source);
        Ok(())
    }

    /// Releases the mapped weights from memory. They are read from their files again on the next access.
    pub fn let_go(&self) {
        let sources = self.sources.values().chain([&self.source]);
        sources.for_each(Source::let_go);
    }

    /// Checks that the files of the model have not changed since they were mapped. Results computed from changed files
    /// belong to no model.
    ///
    /// # Errors
    /// An error with the first file that was truncated or changed.
    pub fn check(&self) -> io::Result<()> {
        let mut sources = self.sources.values().chain([&self.source]);
        sources.try_for_each(Source::check)
    }
}

/// Loads the model at `path`: an .onnx file, or a folder with `model.onnx` or a single .onnx file, directly or in
/// `onnx/`.
///
/// Location, file and range of every external tensor are checked.
///
/// # Errors
/// [`LoadError`] with the file.
pub fn load(path: &Path) -> Result<LoadedModel, LoadError> {
    let path = model_file(path)?;
    let shown = path.display().to_string();
    let source = Source::map(&path).map_err(|cause| LoadError::Io { path: shown, cause })?;
    load_from(source, path)
}

/// Loads a model from the bytes of an .onnx file without external data.
///
/// # Errors
/// [`LoadError`], with the path `<memory>`.
pub fn from_bytes(bytes: Bytes) -> Result<LoadedModel, LoadError> {
    load_from(Source::in_memory(bytes), PathBuf::from("<memory>"))
}

/// The message for a file that may be a truncated model.
fn cut_off(detail: &str) -> String {
    format!("{detail}; a model that was copied in part ends like that: get it again")
}

fn load_from(source: Source, path: PathBuf) -> Result<LoadedModel, LoadError> {
    let shown = path.display().to_string();
    let not_onnx = |detail: String| LoadError::NotOnnx {
        path: shown.clone(),
        detail,
    };
    if source.bytes().is_empty() {
        return Err(not_onnx(cut_off("the file is empty")));
    }
    if let Some(advice) = foreign::file(source.bytes()) {
        return Err(not_onnx(advice));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_data = name.ends_with(".data") || name.ends_with("_data");
    let mut proto = ModelProto::decode(source.bytes().clone()).map_err(|e| {
        not_onnx(match is_data {
            true => {
                "it looks like the data file of a model: give the .onnx file beside it".to_owned()
            }
            false => cut_off(&e.to_string()),
        })
    })?;
    if proto.ir_version() > NEWEST_IR {
        return Err(LoadError::Newer {
            path: shown,
            detail: format!(
                "the model is of IR version {}, and fields newer than version {NEWEST_IR} would be lost: export with an older onnx",
                proto.ir_version()
            ),
        });
    }
    if proto.graph.is_none() {
        return Err(not_onnx(cut_off("it holds no graph")));
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut loaded = LoadedModel {
        model: Model::default(),
        path: path.clone(),
        source,
        sources: BTreeMap::new(),
    };
    visit_tensors(&mut proto, &mut |tensor, _| {
        let broken = |cause| LoadError::Tensor {
            path: shown.clone(),
            cause,
        };
        let Some(external) = External::of(tensor).map_err(broken)? else {
            return Ok(());
        };
        if !loaded.sources.contains_key(&external.location) {
            let refused = |reason| LoadError::Location {
                path: shown.clone(),
                tensor: tensor.name().to_owned(),
                location: external.location.clone(),
                reason,
            };
            let file = data_file(&path, &folder, &external.location).map_err(refused)?;
            let data =
                Source::map(&file).map_err(|e| refused(format!("{}: {e}", file.display())))?;
            loaded
                .model
                .files
                .insert(external.location.clone(), data.bytes().clone());
            loaded.sources.insert(external.location.clone(), data);
        }
        loaded.model.range(tensor, &external).map_err(broken)?;
        // The size of unknown element types cannot be checked.
        match byte_size(tensor) {
            Ok(needed) if needed != external.length => Err(broken(TensorError::Size {
                tensor: tensor.name().to_owned(),
                found: external.length,
                dims: tensor.dims.clone(),
                needed,
            })),
            _ => Ok(()),
        }
    })?;
    proto.graph.iter_mut().for_each(order::sort);
    loaded.model.proto = proto;
    Ok(loaded)
}

fn model_file(path: &Path) -> Result<PathBuf, LoadError> {
    let io = |cause| LoadError::Io {
        path: path.display().to_string(),
        cause,
    };
    let metadata = fs::metadata(path).map_err(|cause| match foreign::hub_name(path) {
        Some(advice) if cause.kind() == io::ErrorKind::NotFound => LoadError::Foreign {
            path: path.display().to_string(),
            advice,
        },
        _ => io(cause),
    })?;
    if !metadata.is_dir() {
        return Ok(path.to_path_buf());
    }
    let mut models = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.extension() == Some(OsStr::new("onnx")) {
            models.push(file);
        }
    }
    models.sort();
    let preferred = path.join("model.onnx");
    if models.contains(&preferred) {
        return Ok(preferred);
    }
    match models.as_slice() {
        [only] => Ok(only.clone()),
        // Repositories on hubs have their models in `onnx/`.
        [] if path.join("onnx").is_dir() => model_file(&path.join("onnx")),
        [] => Err(match foreign::folder(path) {
            Some(advice) => LoadError::Foreign {
                path: path.display().to_string(),
                advice,
            },
            None => below(path),
        }),
        many => {
            let names: Vec<String> = many
                .iter()
                .filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()))
                .collect();
            Err(LoadError::Folder {
                path: path.display().to_string(),
                found: format!("{}: name the file", names.join(", ")),
                models: models.clone(),
            })
        }
    }
}

/// The error of the folder `path`, which has no model itself or in its `onnx/`: with the models deeper in it, or what to do.
fn below(path: &Path) -> LoadError {
    let entries = walkdir::WalkDir::new(path)
        .max_depth(DEEPEST)
        .sort_by_file_name();
    let models: Vec<PathBuf> = entries
        .into_iter()
        .filter_map(Result::ok)
        .map(walkdir::DirEntry::into_path)
        .filter(|file| file.extension() == Some(OsStr::new("onnx")))
        .collect();
    let names = models.iter().take(MOST_NAMED).filter_map(|file| {
        let name = file.strip_prefix(path).ok()?;
        Some(name.display().to_string())
    });
    let found = match models.is_empty() {
        true => format!("none: {}", foreign::export("MODEL")),
        false => format!(
            "none, but {}: name the file",
            names.collect::<Vec<_>>().join(", ")
        ),
    };
    LoadError::Folder {
        path: path.display().to_string(),
        found,
        models,
    }
}
