//! Checks of output paths: an output never replaces an input of the same run, and without `force` replaces only files
//! that this tool wrote.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::files::copy::same_bytes;
use crate::files::load::LoadedModel;
use crate::files::origin::{FileOrigin, is_data_name};

/// Why an output must not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// It would replace an input.
    #[error(
        "{output}: the output would replace an input of this run, {input}: write to another path"
    )]
    Input {
        /// The output.
        output: String,
        /// The input.
        input: String,
    },
    /// It would lie in the folder that is read.
    #[error(
        "{output}: the output lies inside the input folder {folder}, where the next run would read it as one of the folder's models: write to a folder outside of it"
    )]
    Inside {
        /// The output.
        output: String,
        /// The input folder.
        folder: String,
    },
    /// The input folder lies in it.
    #[error(
        "{output}: the output would replace an input of this run, the folder {folder} inside of it: write to another path"
    )]
    Around {
        /// The output folder.
        output: String,
        /// The input folder.
        folder: String,
    },
    /// A file is where a folder is expected.
    #[error("{0} is a file: an output is a folder, or a name that ends in .onnx")]
    File(String),
    /// It would replace something that this tool did not write.
    #[error("{output}: {found} is there, which gqa2mla did not write: give --force to replace it")]
    Foreign {
        /// The output.
        output: String,
        /// What exists there.
        found: String,
    },
    /// Another model in the folder reads a data file that the output would replace.
    #[error(
        "{output}: {model} is there and reads {data}, which the output would replace: write to another folder, or give --force"
    )]
    Shared {
        /// The output folder.
        output: String,
        /// The other model, relative to it.
        model: String,
        /// The data file, relative to it.
        data: String,
    },
}

/// Checks that `output` is none of `inputs`, also through symbolic or hard links.
///
/// # Errors
/// [`OutputError::Input`].
pub fn check_file(output: &Path, inputs: &[&Path]) -> Result<(), OutputError> {
    match inputs.iter().find(|input| is_same(input, output)) {
        Some(input) => Err(is_input(output, input)),
        None => Ok(()),
    }
}

/// A kind of output file other than models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherFile {
    /// Statistics of `calibrate`.
    Statistics,
    /// Factors of `factors export`.
    Factors,
    /// The report of a rewrite or of a training run, .html or .json.
    Report,
}

/// The format entry in the metadata of statistics.
const STATISTICS: &str = "gqa2mla statistics";
/// The format entry in the metadata of exported factors.
pub const FACTORS: &str = "gqa2mla factors";
/// A text in the head of every report page.
const PAGE: &str = "<title>gqa2mla: ";
/// Number of bytes of a file that are searched for these texts.
const HEAD: u64 = 64 * 1024;

impl OtherFile {
    /// Whether the file at `path` is of this kind, or empty.
    fn wrote(self, path: &Path) -> io::Result<bool> {
        let mut head = Vec::new();
        fs::File::open(path)?.take(HEAD).read_to_end(&mut head)?;
        let text = String::from_utf8_lossy(&head);
        Ok(head.is_empty()
            || match self {
                Self::Statistics => text.contains(STATISTICS),
                Self::Factors => text.contains(FACTORS),
                Self::Report => text.contains(PAGE) || is_report(path)?,
            })
    }
}

/// Whether the file at `path` is a report in JSON.
fn is_report(path: &Path) -> io::Result<bool> {
    let read = io::BufReader::new(fs::File::open(path)?);
    let data: Result<serde_json::Value, _> = serde_json::from_reader(read);
    Ok(data.is_ok_and(|data| {
        let has = |key: &str| data.get(key).is_some();
        has("schema") && has("version") && (has("models") || has("tuned"))
    }))
}

/// Checks that `output`, a future file of the kind `kind`, is none of `inputs`, and without `force` also that no file
/// of another kind exists there.
///
/// # Errors
/// [`OutputError`].
pub fn check_other(
    output: &Path,
    inputs: &[&Path],
    kind: OtherFile,
    force: bool,
) -> Result<(), OutputError> {
    check_file(output, inputs)?;
    if force || !output.is_file() || kind.wrote(output).unwrap_or(false) {
        return Ok(());
    }
    Err(OutputError::Foreign {
        output: output.display().to_string(),
        found: "a file".to_owned(),
    })
}

/// Checks that no folder of the path `output` is a file.
///
/// # Errors
/// [`OutputError::File`].
fn check_folders(output: &Path) -> Result<(), OutputError> {
    match output.ancestors().find(|folder| folder.is_file()) {
        Some(file) => Err(OutputError::File(file.display().to_string())),
        None => Ok(()),
    }
}

/// Checks that neither `output`, an .onnx path, nor its data file would replace a file of `model`, and that its folder is no
/// file.
///
/// # Errors
/// [`OutputError::Input`] and [`OutputError::File`].
pub fn check_inputs(model: &LoadedModel, output: &Path) -> Result<(), OutputError> {
    check_folders(output.parent().unwrap_or(output))?;
    let data: Vec<&Path> = model.sources.values().map(|s| s.path()).collect();
    check_file(output, &[&model.path])?;
    check_file(output, &data)?;
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    for input in data {
        let data_name = input.file_name().unwrap_or_default().to_string_lossy();
        let is_of_output = data_name == format!("{name}.data") || is_data_name(&name, &data_name);
        if is_of_output && is_same(&output.with_file_name(&*data_name), input) {
            return Err(is_input(output, input));
        }
    }
    Ok(())
}

/// Checks `output`, an .onnx path, as [`check_inputs`] does, and without `force` also that no file of another origin
/// exists there.
///
/// # Errors
/// [`OutputError`].
pub fn check_model(model: &LoadedModel, output: &Path, force: bool) -> Result<(), OutputError> {
    check_inputs(model, output)?;
    if force || !output.is_file() || FileOrigin::of(output).is_ok_and(|o| o.ours) {
        return Ok(());
    }
    Err(OutputError::Foreign {
        output: output.display().to_string(),
        found: "a file".to_owned(),
    })
}

/// Checks that neither of the folder `output` and the input folder `root` contains the other, and without `force` also
/// that none of `files`, relative to `output`, would replace a file of another origin.
///
/// # Errors
/// [`OutputError`].
pub fn check_folder(
    root: &Path,
    output: &Path,
    files: &[PathBuf],
    force: bool,
) -> Result<(), OutputError> {
    if let (Ok(read), Some(written)) = (fs::canonicalize(root), canonical(output)) {
        if read == written {
            return Err(is_input(output, root));
        }
        if read.starts_with(&written) {
            return Err(OutputError::Around {
                output: output.display().to_string(),
                folder: root.display().to_string(),
            });
        }
        if written.starts_with(&read) {
            return Err(OutputError::Inside {
                output: output.display().to_string(),
                folder: root.display().to_string(),
            });
        }
    }
    check_folders(output)?;
    for file in files {
        check_file(&output.join(file), &[&root.join(file)])?;
    }
    if force {
        return Ok(());
    }
    let there = models_beside(output, files);
    // An earlier output also holds models that were copied.
    let is_copy = |file: &PathBuf| {
        files.contains(file) && same_bytes(&root.join(file), &output.join(file)).unwrap_or(false)
    };
    let is_strange = |(file, origin): &&(PathBuf, FileOrigin)| {
        files.contains(file) && !origin.ours && !is_copy(file)
    };
    let strange = there.iter().find(is_strange).map(|(file, _)| file);
    let ours = there.iter().any(|(_, origin)| origin.ours);
    let exists = |file: &&PathBuf| output.join(file).exists();
    if let Some(file) = strange.or_else(|| files.iter().filter(|_| !ours).find(exists)) {
        return Err(OutputError::Foreign {
            output: output.display().to_string(),
            found: file.display().to_string(),
        });
    }
    // Another model may read a data file of the same name.
    for (model, origin) in there.iter().filter(|(model, _)| !files.contains(model)) {
        let mut read = origin.locations.iter();
        let taken = read.find(|location| files.contains(&model.with_file_name(location)));
        if let Some(data) = taken {
            return Err(OutputError::Shared {
                output: output.display().to_string(),
                model: model.display().to_string(),
                data: model.with_file_name(data).display().to_string(),
            });
        }
    }
    Ok(())
}

/// The models in the folders of those models among `files` that will lie in the folder `output`, relative to it.
fn models_beside(output: &Path, files: &[PathBuf]) -> Vec<(PathBuf, FileOrigin)> {
    let is_model = |path: &Path| path.extension().is_some_and(|x| x == "onnx");
    let folders: BTreeSet<&Path> = files
        .iter()
        .filter(|file| is_model(file))
        .filter_map(|file| file.parent())
        .collect();
    let entries = folders.into_iter().filter_map(|folder| {
        let entries = fs::read_dir(output.join(folder)).ok()?;
        Some(entries.filter_map(move |e| Some(folder.join(e.ok()?.file_name()))))
    });
    entries
        .flatten()
        .filter(|file| is_model(file))
        .map(|file| {
            let unread = FileOrigin {
                ours: false,
                locations: BTreeSet::new(),
            };
            let origin = FileOrigin::of(&output.join(&file)).unwrap_or(unread);
            (file, origin)
        })
        .collect()
}

/// The canonical path of `path`, of which the last folders may not exist yet.
fn canonical(path: &Path) -> Option<PathBuf> {
    let whole = std::path::absolute(path).ok()?;
    whole.ancestors().find_map(|there| {
        let mut real = fs::canonicalize(there).ok()?;
        for part in whole.strip_prefix(there).ok()? {
            match part == ".." {
                true => drop(real.pop()),
                false => real.push(part),
            }
        }
        Some(real)
    })
}

/// Checks that `output`, if it exists, is not in the input folder `root`.
///
/// # Errors
/// [`OutputError::Input`].
pub fn check_outside(output: &Path, root: &Path) -> Result<(), OutputError> {
    match (fs::canonicalize(output), fs::canonicalize(root)) {
        (Ok(file), Ok(root)) if file.starts_with(&root) => Err(is_input(output, &file)),
        _ => Ok(()),
    }
}

fn is_input(output: &Path, input: &Path) -> OutputError {
    OutputError::Input {
        output: output.display().to_string(),
        input: input.display().to_string(),
    }
}

/// Whether both exist and are the same file.
#[cfg(unix)]
fn is_same(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    identity(one).is_some_and(|file| Some(file) == identity(other))
}

#[cfg(not(unix))]
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    real(one).is_some_and(|file| Some(file) == real(other))
}
