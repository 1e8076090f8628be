//! Publishing of a staged file or model: after each step, either the old output or the new one is complete.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::files::interrupted::{HIDDEN, TEMPORARY, publishing};
use crate::files::origin::{FileOrigin, is_data_name};

/// File in the hidden folder that lists old and new data files; those that no model refers to are to be removed.
const CONCERNED: &str = "data-files";
/// Name of the old output folder in the hidden folder during publishing, on systems that cannot exchange two folders.
pub const ASIDE: &str = "old";

/// Moves the file in `staged` to `target`.
pub fn file(staged: &Path, target: &Path) -> io::Result<()> {
    let _guard = publishing();
    fs::rename(staged.join(target.file_name().unwrap_or_default()), target)?;
    sync_folder(parent(target))
}

/// Moves the model in `staged` to `target`, with its data file beside it. The new data file is moved first, to a name
/// that the old model does not use; the old data file is removed last. If the process is killed in between, a list of
/// these files is left in `place`, for [`recover`].
pub fn model(staged: &Path, target: &Path, place: &Path) -> io::Result<()> {
    let name = target.file_name().unwrap_or_default();
    let beside = |data: &OsStr| target.with_file_name(data);
    let mut data = Vec::new();
    for entry in fs::read_dir(staged)? {
        let file = entry?.file_name();
        if file != name {
            data.push(file);
        }
    }
    let mut concerned: BTreeSet<String> = data
        .iter()
        .map(|d| d.to_string_lossy().into_owned())
        .collect();
    concerned.extend(owned_data(target));
    if !concerned.is_empty() {
        let list: Vec<&str> = concerned.iter().map(String::as_str).collect();
        fs::write(place.join(CONCERNED), list.join("\n"))?;
        File::open(place.join(CONCERNED))?.sync_all()?;
    }
    let _guard = publishing();
    for file in &data {
        let to = beside(file);
        let of_content = is_data_name(&name.to_string_lossy(), &file.to_string_lossy());
        if !of_content && to.exists() && target.exists() {
            // The old model uses a data file of this name: remove the old model first, because it must not be combined
            // with new weights.
            fs::remove_file(target)?;
        }
        fs::rename(staged.join(file), &to)?;
    }
    if !data.is_empty() {
        sync_folder(parent(target))?;
    }
    fs::rename(staged.join(name), target)?;
    sync_folder(parent(target))?;
    sweep(parent(target), &concerned);
    Ok(())
}

/// The data files that belong to the model at `path` and are removed with it.
pub fn owned_data(path: &Path) -> Vec<String> {
    let Ok(old) = FileOrigin::of(path) else {
        return Vec::new();
    };
    let mut beside = path.file_name().unwrap_or_default().to_owned();
    beside.push(".data");
    let mut locations: Vec<String> = old.locations.into_iter().collect();
    locations.retain(|l| !l.contains(['/', '\\']) && (old.ours || OsStr::new(l) == beside));
    locations
}

/// Removes those files of `names` in `folder` to which no model there refers.
fn sweep(folder: &Path, names: &BTreeSet<String>) {
    let mut used = BTreeSet::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let Ok(path) = entry.map(|e| e.path()) else {
            return;
        };
        if is_model(&path) && path.is_file() {
            match FileOrigin::of(&path) {
                Ok(model) => used.extend(model.locations),
                // If a model cannot be read, it may refer to any of them: remove nothing.
                Err(_) => return,
            }
        }
    }
    for name in names.difference(&used) {
        if name.contains(['/', '\\']) {
            continue;
        }
        let path = folder.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|m| !m.is_dir()) {
            // A file that cannot be removed only takes space; the output is complete.
            let _ = fs::remove_file(&path);
        }
    }
}

/// Completes what a killed run was doing in `place`: moves an old folder back unless the new one has been published,
/// and removes data files to which no model refers.
pub fn recover(place: &Path) -> io::Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let name = name
        .strip_prefix(HIDDEN)
        .and_then(|n| n.strip_suffix(TEMPORARY));
    let target = place.with_file_name(name.unwrap_or_default());
    let aside = place.join(ASIDE);
    if aside.is_dir() && !target.exists() {
        fs::rename(&aside, &target)?;
    }
    if let Ok(list) = fs::read_to_string(place.join(CONCERNED)) {
        // A list that this tool did not write removes nothing but data files of this model.
        let model = target.file_name().unwrap_or_default().to_string_lossy();
        let is_data = |name: &&str| is_data_name(&model, name) || **name == format!("{model}.data");
        let data = list.lines().filter(is_data).map(str::to_owned);
        sweep(parent(&target), &data.collect());
    }
    Ok(())
}

/// Whether the path ends in `.onnx`.
pub fn is_model(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "onnx")
}

/// The folder of a file; `.` for a bare file name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Flushes the directory entries of `folder` to disk.
#[cfg(unix)]
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Does nothing: other systems need no flush of directory entries.
#[cfg(not(unix))]
pub fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
