//! Publishing of a staged folder: it is exchanged with the existing folder as a whole, and files of other outputs are
//! carried over.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use crate::files::copy::copy_file;
use crate::files::interrupted::{HIDDEN, publishing};
use crate::files::origin::FileOrigin;
use crate::files::publish::{ASIDE, is_model, owned_data, parent, sync_folder};

/// Moves the folder `staged` to `target`. An existing folder is exchanged with it as a whole; its files are carried over,
/// but those of the same names and the data files of replaced models.
pub fn folder(staged: &Path, target: &Path, place: &Path) -> io::Result<()> {
    if target.exists() {
        carry_over(target, staged)?;
        sync_tree(staged)?;
        let _guard = publishing();
        if !exchange(staged, target)? {
            let aside = place.join(ASIDE);
            fs::rename(target, &aside)?;
            fs::rename(staged, target).inspect_err(|_| {
                let _ = fs::rename(&aside, target);
            })?;
        }
    } else {
        sync_tree(staged)?;
        let _guard = publishing();
        fs::rename(staged, target)?;
    }
    sync_folder(parent(target))
}

/// Moves the files of `staged` into the folder `target`, which cannot be exchanged, because it is a mount point or a
/// working directory. Replaced models are removed first and new ones are moved last, so that no incomplete model exists
/// at any time.
pub fn into_folder(staged: &Path, target: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in WalkDir::new(staged).sort_by_file_name() {
        let entry = entry?;
        if !entry.file_type().is_dir()
            && let Ok(relative) = entry.path().strip_prefix(staged)
        {
            files.push(relative.to_path_buf());
        }
    }
    files.sort_by_key(|file| is_model(file));
    let old = replaced_data(target, staged)?;
    sync_tree(staged)?;
    let _guard = publishing();
    for file in &files {
        check_free(target, file)?;
    }
    for model in files.iter().filter(|file| is_model(file)) {
        let path = target.join(model);
        if path.exists() {
            fs::remove_file(&path)?;
        }
    }
    for file in &files {
        let to = target.join(file);
        fs::create_dir_all(parent(&to))?;
        fs::rename(staged.join(file), &to)?;
    }
    for file in old.iter().filter(|file| !files.contains(file)) {
        let _ = fs::remove_file(target.join(file));
    }
    sync_tree(target)
}

/// An error if `file` cannot be moved into `target`: a folder has its name, or a file that of one of its folders.
fn check_free(target: &Path, file: &Path) -> io::Result<()> {
    let taken = |path: &Path, is: &str| {
        let message = format!("{} is a {is}: remove it", path.display());
        Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
    };
    let path = target.join(file);
    if path.is_dir() {
        return taken(&path, "folder");
    }
    let folders = file.ancestors().skip(1).map(|folder| target.join(folder));
    match folders
        .into_iter()
        .find(|folder| folder.exists() && !folder.is_dir())
    {
        Some(folder) => taken(&folder, "file"),
        None => Ok(()),
    }
}

/// The data files in the folder `target` of models that this tool wrote and that models of `staged` replace, relative to
/// it. Data files that another model refers to are left out.
fn replaced_data(target: &Path, staged: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let (mut data, mut used) = (BTreeSet::new(), BTreeSet::new());
    let hidden = |e: &DirEntry| e.file_name().to_string_lossy().starts_with(HIDDEN);
    for entry in WalkDir::new(target)
        .into_iter()
        .filter_entry(|e| !hidden(e))
    {
        let entry = entry?;
        let path = entry.path();
        let (true, Ok(relative)) = (is_model(path), path.strip_prefix(target)) else {
            continue;
        };
        let beside = |name: &String| relative.with_file_name(name);
        match FileOrigin::of(path) {
            Ok(model) if model.ours && staged.join(relative).exists() => {
                data.extend(owned_data(path).iter().map(beside));
            }
            Ok(model) => used.extend(model.locations.iter().map(beside)),
            Err(_) => {}
        }
    }
    Ok(data.difference(&used).cloned().collect())
}

/// Links or copies into `staged` the files of `target` that `staged` does not replace.
fn carry_over(target: &Path, staged: &Path) -> io::Result<()> {
    let replaced = replaced_data(target, staged)?;
    let mut entries = WalkDir::new(target).min_depth(1).into_iter();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let path = entry.path();
        let relative = path.strip_prefix(target).unwrap_or(path);
        let to = staged.join(relative);
        if entry.file_name().to_string_lossy().starts_with(HIDDEN) {
            entries.skip_current_dir();
        } else if entry.file_type().is_dir() {
            if !to.is_dir() {
                fs::create_dir(&to)?;
                fs::set_permissions(&to, entry.metadata()?.permissions())?;
            }
        } else if fs::symlink_metadata(&to).is_err() && !replaced.contains(relative) {
            link(path, &to)?;
        }
    }
    Ok(())
}

fn link(from: &Path, to: &Path) -> io::Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    #[cfg(unix)]
    if from.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(from)?, to);
    }
    copy_file(from, to)
}

/// Exchanges two folders atomically; false if the system does not support it.
#[cfg(target_os = "linux")]
fn exchange(one: &Path, other: &Path) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Flushes the directory entries of all folders under `root` to disk.
fn sync_tree(root: &Path) -> io::Result<()> {
    for entry in WalkDir::new(root) {
        let entry = entry?;
        if entry.file_type().is_dir() {
            sync_folder(entry.path())?;
        }
    }
    Ok(())
}
