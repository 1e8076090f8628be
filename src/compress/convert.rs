//! One rewrite to a file: rewrite, save beside the final name, and only then take that name.

use std::fs;
use std::path::{Path, PathBuf};

use gqa2mla_passes::onnx::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
use gqa2mla_passes::pipeline::factorize::Factorize;
use gqa2mla_passes::{RewriteError, RewriteOptions, Rewritten, rewrite};
use std::io::Write;
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::files::interrupted::Temporary;
use crate::files::load::{LoadError, LoadedModel};
use crate::files::save::{DataFile, SaveError, output_path, save_with};

/// New tensors of at least this many bytes wait in a file, so that one layer's factors leave memory before the next.
const SPILL_FROM: usize = 4096;
/// Name of that file among the model's data files; no exporter writes such a name.
const SPILL: &str = ".gqa2mla-new-weights";

/// Why a model was not converted. Nothing is left under the output's name.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The input could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The rewrite refused or failed.
    #[error("{path}: {cause}")]
    Rewrite {
        /// The input.
        path: String,
        /// Why.
        cause: Box<RewriteError>,
    },
    /// The output could not be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The output's folder could not be used.
    #[error("{path}: {action} failed: {cause}")]
    Folder {
        /// The folder or file.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        cause: std::io::Error,
    },
}

/// A rewritten model in a folder beside its final name; dropped, it disappears.
pub struct Staged {
    _temporary: Temporary,
    folder: TempDir,
    /// After the folder: what was made for it goes when it is gone.
    _made: MadeFolders,
    target: PathBuf,
    /// What was done.
    pub rewritten: Rewritten,
    /// The input as it was loaded, with the rewritten messages.
    pub model: LoadedModel,
}

/// What the model's metadata are to say of what was done, if anything.
pub type Note<'n> = dyn FnMut(&Rewritten) -> Option<StringStringEntryProto> + 'n;

/// Rewrites `original` into a folder beside `out`, its weights into `data`. `note` goes into the model's metadata; `progress` is told how many attentions of how many are done.
pub fn stage(
    original: &LoadedModel,
    (out, data): (&Path, &DataFile),
    options: &RewriteOptions,
    factorize: &mut Factorize,
    note: &mut Note,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Staged, ConvertError> {
    // The weights are shared; only the messages are copied.
    let mut model = original.clone();
    let target = output_path(&model.path, out);
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let folder_error = |action, path: &Path| {
        let path = path.display().to_string();
        move |cause| ConvertError::Folder {
            path,
            action,
            cause,
        }
    };
    if target.is_dir() {
        // Found out by the last rename, the data file would have its name already.
        let action = "writing the output over a folder";
        return Err(folder_error(action, &target)(
            std::io::ErrorKind::IsADirectory.into(),
        ));
    }
    let made = MadeFolders::up_to(&parent);
    fs::create_dir_all(&parent).map_err(folder_error("making the output folder", &parent))?;
    let (temporary, folder, rewritten) = stage_in(
        &parent,
        (&target, data),
        &mut model,
        options,
        factorize,
        note,
        progress,
    )?;
    Ok(Staged {
        _temporary: temporary,
        folder,
        _made: made,
        target,
        rewritten,
        model,
    })
}

fn stage_in(
    parent: &Path,
    (target, data): (&Path, &DataFile),
    model: &mut LoadedModel,
    options: &RewriteOptions,
    factorize: &mut Factorize,
    note: &mut Note,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Temporary, TempDir, Rewritten), ConvertError> {
    let folder_error = |action, path: &Path| {
        let path = path.display().to_string();
        move |cause| ConvertError::Folder {
            path,
            action,
            cause,
        }
    };
    let folder = tempfile::Builder::new()
        .prefix(".gqa2mla-")
        .tempdir_in(parent)
        .map_err(folder_error("making a temporary folder", parent))?;
    let temporary = Temporary::new(folder.path());
    let spill_path = folder.path().join(SPILL);
    let mut spill = fs::File::create_new(&spill_path)
        .map_err(folder_error("making a temporary file", &spill_path))?;
    let mut length = 0u64;
    let mut store =
        |tensor: TensorProto| -> Result<TensorProto, Box<dyn std::error::Error + Send + Sync>> {
            let bytes = match &tensor.raw_data {
                Some(bytes) if bytes.len() >= SPILL_FROM => bytes.clone(),
                _ => return Ok(tensor),
            };
            spill.write_all(&bytes)?;
            let stored = external(tensor, length, bytes.len() as u64);
            length += bytes.len() as u64;
            Ok(stored)
        };
    let rewritten =
        rewrite(&mut model.model, options, factorize, &mut store, progress).map_err(|cause| {
            ConvertError::Rewrite {
                path: model.path.display().to_string(),
                cause: Box::new(cause),
            }
        })?;
    if let Some(note) = note(&rewritten) {
        let properties = &mut model.model.proto.metadata_props;
        properties.retain(|p| p.key() != note.key());
        properties.push(note);
    }
    spill
        .flush()
        .map_err(folder_error("writing the new weights", &spill_path))?;
    drop(spill);
    if length > 0 {
        model.add_file(SPILL, &spill_path)?;
    }
    let name = target.file_name().map(PathBuf::from).unwrap_or_default();
    save_with(model, &folder.path().join(name), data)?;
    fs::remove_file(&spill_path).map_err(folder_error("removing a temporary file", &spill_path))?;
    Ok((temporary, folder, rewritten))
}

fn external(mut tensor: TensorProto, offset: u64, length: u64) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    tensor.raw_data = None;
    tensor.data_location = Some(DataLocation::External as i32);
    tensor.external_data = vec![
        entry("location", SPILL.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", length.to_string()),
    ];
    tensor
}

impl Staged {
    /// Where the model is now.
    pub fn path(&self) -> PathBuf {
        self.folder
            .path()
            .join(self.target.file_name().unwrap_or_default())
    }

    /// Where it will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Gives the model its final name: data first, so that a model under its name is whole.
    pub fn publish(self) -> Result<PathBuf, ConvertError> {
        let staged = self.path();
        let error = |path: &Path| {
            let path = path.display().to_string();
            move |cause| ConvertError::Folder {
                path,
                action: "giving the output its name",
                cause,
            }
        };
        for data in self.data_files().map_err(error(&self.target))? {
            let to = self.target.with_file_name(&data);
            fs::rename(self.folder.path().join(&data), &to).map_err(error(&to))?;
        }
        fs::rename(&staged, &self.target).map_err(error(&self.target))?;
        #[cfg(unix)]
        if let Some(folder) = self.target.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::File::open(folder)
                .and_then(|f| f.sync_all())
                .map_err(error(folder))?;
        }
        Ok(self.target)
    }

    /// Keeps a model that failed validation in a folder `<name>.rejected` beside its name, where it can be looked into.
    pub fn reject(self) -> Result<PathBuf, ConvertError> {
        let error = |cause| ConvertError::Folder {
            path: self.target.display().to_string(),
            action: "keeping the rejected output",
            cause,
        };
        let mut names = self.data_files().map_err(error)?;
        names.extend(self.target.file_name().map(PathBuf::from));
        keep_rejected(&self.target, &names, self.folder.keep()).map_err(error)
    }

    /// The files beside the model.
    fn data_files(&self) -> Result<Vec<PathBuf>, std::io::Error> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.folder.path())? {
            let name = entry?.file_name();
            if Some(name.as_os_str()) != self.target.file_name() {
                names.push(PathBuf::from(name));
            }
        }
        Ok(names)
    }
}

/// Gives the folder `staged` the name `<target>.rejected`. An earlier one is replaced; one that holds anything else than
/// `names` stays, and the new one gets a number.
pub fn keep_rejected(
    target: &Path,
    names: &[PathBuf],
    staged: PathBuf,
) -> Result<PathBuf, std::io::Error> {
    let named = |suffix: &str| {
        let mut name = target.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let mut kept = named(".rejected");
    let mut number = 1;
    while kept.exists() && !holds_only(&kept, names) {
        number += 1;
        kept = named(&format!(".rejected-{number}"));
    }
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    fs::rename(staged, &kept)?;
    Ok(kept)
}

/// Whether `folder` is a folder that holds these files and nothing else.
fn holds_only(folder: &Path, names: &[PathBuf]) -> bool {
    WalkDir::new(folder).into_iter().all(|entry| {
        entry.is_ok_and(|e| {
            let relative = e.path().strip_prefix(folder).unwrap_or(e.path());
            e.file_type().is_dir() || names.iter().any(|n| n == relative)
        })
    })
}

/// Folders that did not exist before. Dropped, those that are empty disappear: a refusal leaves no trace.
pub struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    /// The folders on the way to `path` that are still to be made, innermost first.
    pub fn up_to(path: &Path) -> Self {
        let missing = path
            .ancestors()
            .take_while(|p| !p.as_os_str().is_empty() && !p.exists());
        Self(missing.map(Path::to_path_buf).collect())
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // What holds the output, or something that another process has put there, stays.
            if fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }
}
