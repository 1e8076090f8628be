//! The steps by which a staged file or model takes its name: each leaves the old output whole or the new one.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::files::interrupted::{HIDDEN, TEMPORARY, publishing};
use crate::files::origin::{Origin, is_data_name};

/// File of a place that lists the data files, old and new, of which the ones that no model refers to have to go.
const CONCERNED: &str = "data-files";
/// Name in a place of an old folder while the new one takes its name, where the system cannot exchange the two.
pub const ASIDE: &str = "old";

/// Gives the one file in `staged` the name `target`.
pub fn file(staged: &Path, target: &Path) -> io::Result<()> {
    let _guard = publishing();
    fs::rename(staged.join(target.file_name().unwrap_or_default()), target)?;
    sync_folder(parent(target))
}

/// Gives the model in `staged` the name `target`, with its data file beside it. The data file is there first, under a name
/// that the old model does not use; the old model's own data file goes last. A run that is killed in between leaves a list
/// of these files in `place`, for [`recover`].
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
            // A file of this name is the old model's: no model is better than the old one with new weights.
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

/// The data files that go when the model at `path` is replaced: those that were written with it.
pub fn owned_data(path: &Path) -> Vec<String> {
    let Ok(old) = Origin::of(path) else {
        return Vec::new();
    };
    let mut beside = path.file_name().unwrap_or_default().to_owned();
    beside.push(".data");
    let mut locations: Vec<String> = old.locations.into_iter().collect();
    locations.retain(|l| !l.contains(['/', '\\']) && (old.ours || OsStr::new(l) == beside));
    locations
}

/// Removes those of `names` in `folder` that no model there refers to.
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
            match Origin::of(&path) {
                Ok(model) => used.extend(model.locations),
                // Nobody knows what it refers to: everything stays.
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
            // One that cannot be removed costs space, and is no reason to call the output a failure.
            let _ = fs::remove_file(&path);
        }
    }
}

/// Ends what a killed run was doing in `place`: an old folder that was put aside gets its name back unless the new one has
/// it, and data files that no model came to refer to go.
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
        sweep(parent(&target), &list.lines().map(str::to_owned).collect());
    }
    Ok(())
}

/// Whether the name is one of a model.
pub fn is_model(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "onnx")
}

/// The folder of a file; never empty.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes out the names in `folder`.
#[cfg(unix)]
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Writes out the names in `folder`, where the system does so by itself.
#[cfg(not(unix))]
pub fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
