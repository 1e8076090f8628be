//! Cleanup when a signal ends the process: staging folders are removed, finished work that the next run can use is
//! kept.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use walkdir::WalkDir;

use crate::files::lock::{Lock, lock};

/// Staging folders of this process, each with the parent folders that were created for it, innermost first.
static STAGED: Mutex<BTreeMap<PathBuf, Vec<PathBuf>>> = Mutex::new(BTreeMap::new());
/// Held while an output is published, so that the process does not end in between.
static PUBLISHING: Mutex<()> = Mutex::new(());
/// Folders and files of unfinished work; folders are locked by this process if the system supports it.
static UNFINISHED: Mutex<BTreeMap<PathBuf, Option<File>>> = Mutex::new(BTreeMap::new());
/// Unfinished work that this process no longer continues, because it has failed.
static LEFT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Outputs that this process has published.
static PUBLISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Leftovers of earlier runs that this process has removed.
static CLEARED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Prefix of the names of staging folders; the output's name follows.
pub const HIDDEN: &str = ".gqa2mla-stage-";
/// Suffix of the names of staging folders, so that the folder of a model does not end in `.onnx`.
pub const TEMPORARY: &str = ".tmp";
/// Prefix of the names of folders with finished layers of a rewrite.
pub const LAYERS: &str = ".gqa2mla-work-layers-";
/// Prefix of the names of folders with finished rows of a comparison.
pub const ROWS: &str = ".gqa2mla-work-rows-";

/// The file with the state of an unfinished run that writes `out`, beside it.
#[must_use]
pub fn checkpoint_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers a staging folder for removal by [`clear`], with the created parent folders `made`, which are removed if
/// they are empty.
pub fn remember(folder: &Path, made: &[PathBuf]) {
    locked(&STAGED).insert(folder.to_path_buf(), made.to_vec());
}

/// Unregisters a staging folder that has been removed.
pub fn forget(folder: &Path) {
    locked(&STAGED).remove(folder);
}

/// Makes [`clear`] wait until the guard is dropped.
pub fn publishing() -> MutexGuard<'static, ()> {
    locked(&PUBLISHING)
}

/// Records that an output has been published at `path`.
pub fn has_published(path: &Path) {
    let mut published = locked(&PUBLISHED);
    if !published.iter().any(|known| known == path) {
        published.push(path.to_path_buf());
    }
}

/// The outputs that this process has published, without those inside of unfinished work.
#[must_use]
pub fn published() -> Vec<PathBuf> {
    let unfinished = locked(&UNFINISHED);
    let is_work = |path: &PathBuf| unfinished.keys().any(|work| path.starts_with(work));
    let published = locked(&PUBLISHED);
    let outputs = published
        .iter()
        .filter(|path| !is_work(path) && path.exists());
    outputs.cloned().collect()
}

/// Removes all staging folders of this process, which is about to end. Waits until no output is being published.
pub fn clear() {
    // Never released, because staging folders no longer exist for outputs that other threads would publish.
    std::mem::forget(publishing());
    for (folder, made) in locked(&STAGED).iter() {
        // Another thread may still write into the folder, so removal is tried twice. The next run removes leftovers.
        let _ = fs::remove_dir_all(folder).or_else(|_| fs::remove_dir_all(folder));
        for folder in made {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A folder or a file of unfinished work. When this is dropped, the lock is released and the work is kept for the next run.
pub struct Work(PathBuf);

/// Creates and registers a folder of unfinished work, from which the next run can resume.
///
/// # Errors
/// I/O errors.
pub fn keep_work(folder: &Path) -> std::io::Result<Work> {
    fs::create_dir_all(folder)?;
    let mut known = locked(&UNFINISHED);
    known
        .entry(folder.to_path_buf())
        .or_insert_with(|| hold(folder));
    Ok(Work(folder.to_path_buf()))
}

/// Registers the path of a file of unfinished work, from which the next run can resume. It need not exist yet.
#[must_use]
pub fn keep_file(path: &Path) -> Work {
    locked(&UNFINISHED).insert(path.to_path_buf(), None);
    Work(path.to_path_buf())
}

impl Work {
    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Removes the work, since it is done. If it cannot be removed, that is not an error: the output is complete.
    pub fn remove(self) {
        let _ = match self.0.is_dir() {
            true => fs::remove_dir_all(&self.0),
            false => fs::remove_file(&self.0),
        };
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        locked(&UNFINISHED).remove(&self.0);
        locked(&LEFT).push(self.0.clone());
    }
}

/// The existing unfinished work of this process, each with its size in bytes.
#[must_use]
pub fn unfinished() -> Vec<(PathBuf, u64)> {
    existing(locked(&UNFINISHED).keys())
}

/// The existing work that this process has left since the last call because it failed, each with its size in bytes.
#[must_use]
pub fn left() -> Vec<(PathBuf, u64)> {
    existing(std::mem::take(&mut *locked(&LEFT)).iter())
}

/// Those of `work` that exist, with their sizes in bytes.
fn existing<'w>(work: impl Iterator<Item = &'w PathBuf>) -> Vec<(PathBuf, u64)> {
    let there = work.filter(|path| path.exists());
    there.map(|path| (path.clone(), size(path))).collect()
}

/// Removes the unfinished work of earlier runs in `folder` whose names begin with `prefix`, except that of running
/// processes. Returns the removed folders with their sizes in bytes.
///
/// # Errors
/// I/O errors.
pub fn remove_work(folder: &Path, prefix: &str) -> std::io::Result<Vec<(PathBuf, u64)>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_work = path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with(prefix));
        if is_work && path.is_dir() {
            let Some(_held) = hold(&path) else { continue };
            let bytes = size(&path);
            fs::remove_dir_all(&path)?;
            removed.push((path, bytes));
        }
    }
    removed.sort();
    Ok(removed)
}

/// Records that `path`, a leftover of a killed run, has been removed.
pub fn has_cleared(path: &Path) {
    locked(&CLEARED).push(path.to_path_buf());
}

/// The leftovers of earlier runs that have been removed since the last call.
#[must_use]
pub fn cleared() -> Vec<PathBuf> {
    std::mem::take(&mut *locked(&CLEARED))
}

/// Size of a file, or total size of the files under a folder, in bytes.
fn size(path: &Path) -> u64 {
    let entries = WalkDir::new(path).into_iter().filter_map(Result::ok);
    let files = entries.filter(|entry| entry.file_type().is_file());
    let lengths = files.filter_map(|entry| Some(entry.metadata().ok()?.len()));
    lengths.sum()
}

/// The folder, opened and locked; `None` if another process has locked it or the system cannot lock folders.
fn hold(folder: &Path) -> Option<File> {
    let held = File::open(folder).ok()?;
    (lock(&held) == Lock::Mine).then_some(held)
}
