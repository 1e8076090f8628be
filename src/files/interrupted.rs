//! What is done when a signal ends the run: staging folders go, unfinished work that the next run can use stays.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use walkdir::WalkDir;

use crate::files::lock::{Lock, lock};

/// Staging folders of this process, and the folders that were made to hold each of them, innermost first.
static STAGED: Mutex<BTreeMap<PathBuf, Vec<PathBuf>>> = Mutex::new(BTreeMap::new());
/// Held while an output takes its name, so that the run does not end between two steps of that.
static PUBLISHING: Mutex<()> = Mutex::new(());
/// Folders of unfinished work, each locked by this process where the system can.
static UNFINISHED: Mutex<BTreeMap<PathBuf, Option<File>>> = Mutex::new(BTreeMap::new());
/// What earlier runs left and this one has removed.
static CLEARED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// How the name of a staging folder begins; the output's name follows.
pub const HIDDEN: &str = ".gqa2mla-stage-";
/// How it ends, so that nobody takes the folder of a model for the model.
pub const TEMPORARY: &str = ".tmp";
/// How the name of a folder of unfinished work begins.
pub const WORK: &str = ".gqa2mla-work-";

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers a staging folder, to be removed by [`clear`] together with those of `made` that are empty then.
pub fn remember(folder: &Path, made: &[PathBuf]) {
    locked(&STAGED).insert(folder.to_path_buf(), made.to_vec());
}

/// Takes a staging folder off the register, as it is gone.
pub fn forget(folder: &Path) {
    locked(&STAGED).remove(folder);
}

/// Keeps [`clear`] waiting as long as the guard lives.
pub fn publishing() -> MutexGuard<'static, ()> {
    locked(&PUBLISHING)
}

/// Removes every staging folder of this process, which is about to end. An output that is taking its name is waited for.
pub fn clear() {
    // Never released: what another thread would publish from now on has no staging folder any more.
    std::mem::forget(publishing());
    for (folder, made) in locked(&STAGED).iter() {
        // Another thread may still write into it: once more takes that as well. The next run removes what stays.
        let _ = fs::remove_dir_all(folder).or_else(|_| fs::remove_dir_all(folder));
        for folder in made {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Makes the folder in which a run keeps work that the next one can go on with, and registers it.
///
/// # Errors
/// The system's.
pub fn keep_work(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut known = locked(&UNFINISHED);
    known
        .entry(folder.to_path_buf())
        .or_insert_with(|| hold(folder));
    Ok(())
}

/// The folders of unfinished work that this run has begun and not removed, each with its size in bytes.
#[must_use]
pub fn unfinished() -> Vec<(PathBuf, u64)> {
    let known = locked(&UNFINISHED);
    let there = known.keys().filter(|folder| folder.is_dir());
    there.map(|folder| (folder.clone(), size(folder))).collect()
}

/// Removes the unfinished work of earlier runs in `folder`, apart from what a running one works on; gives each folder that
/// was removed with its size in bytes.
///
/// # Errors
/// The system's.
pub fn remove_work(folder: &Path) -> std::io::Result<Vec<(PathBuf, u64)>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_work = path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with(WORK));
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

/// Notes that `path`, left by a run that was killed, is removed.
pub fn has_cleared(path: &Path) {
    locked(&CLEARED).push(path.to_path_buf());
}

/// What earlier runs left behind and this one has removed since the last call.
#[must_use]
pub fn cleared() -> Vec<PathBuf> {
    std::mem::take(&mut *locked(&CLEARED))
}

/// The bytes that the files under `folder` hold.
fn size(folder: &Path) -> u64 {
    let files = WalkDir::new(folder).into_iter().filter_map(Result::ok);
    let lengths = files.filter_map(|entry| Some(entry.metadata().ok()?.len()));
    lengths.sum()
}

/// The folder, opened and locked; `None` where another process holds it or the system locks no folders.
fn hold(folder: &Path) -> Option<File> {
    let held = File::open(folder).ok()?;
    (lock(&held) == Lock::Mine).then_some(held)
}
