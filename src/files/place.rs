//! The hidden folder beside an output in which the output is staged. A process locks it while in use, so that there is
//! only one writer per output, and leftovers of killed runs can be distinguished from folders in use.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::files::interrupted::{self, HIDDEN, TEMPORARY};
use crate::files::lock::{Lock, is_own, is_still, lock};
use crate::files::publish;

/// The hidden folders that this process holds. Several rewrites of one output in a process share one folder.
static HELD: Mutex<BTreeMap<PathBuf, Weak<Place>>> = Mutex::new(BTreeMap::new());

/// A locked hidden folder. It is removed when the last reference is dropped.
pub struct Place {
    folder: PathBuf,
    /// Keeps the lock.
    _held: File,
    /// Parent folders that were created for it, innermost first.
    made: Vec<PathBuf>,
    staged: AtomicUsize,
}

/// Why the hidden folder could not be made.
pub enum Unplaced {
    /// Another process is writing this output and has locked this folder.
    Busy(PathBuf),
    /// An I/O error.
    Io(io::Error),
}

impl From<io::Error> for Unplaced {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn held() -> MutexGuard<'static, BTreeMap<PathBuf, Weak<Place>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    /// Claims the hidden folder in `parent` for an output called `name`. Leftovers of killed runs in `parent` are
    /// removed first.
    ///
    /// # Errors
    /// [`Unplaced`].
    pub fn claim(parent: &Path, name: &OsStr) -> Result<Arc<Self>, Unplaced> {
        let mut known = held();
        let made: Vec<PathBuf> = parent
            .ancestors()
            .take_while(|p| !p.as_os_str().is_empty() && !p.exists())
            .map(Path::to_path_buf)
            .collect();
        let claimed = (|| {
            fs::create_dir_all(parent)?;
            // Canonical, so that different paths of one output are recognised as equal.
            let parent = fs::canonicalize(parent)?;
            let mut hidden = OsString::from(HIDDEN);
            hidden.push(name);
            hidden.push(TEMPORARY);
            let folder = parent.join(hidden);
            if let Some(place) = known.get(&folder).and_then(Weak::upgrade) {
                return Ok((folder, Err(place)));
            }
            clear_left(&parent, &folder);
            let held = claim(&folder)?;
            Ok((folder, Ok(held)))
        })();
        let (folder, held) = match claimed {
            Ok((folder, Ok(held))) => (folder, held),
            Ok((_, Err(place))) => return Ok(place),
            Err(error) => {
                remove_empty(&made);
                return Err(error);
            }
        };
        interrupted::remember(&folder, &made);
        let place = Arc::new(Self {
            folder: folder.clone(),
            _held: held,
            made,
            staged: AtomicUsize::new(0),
        });
        known.insert(folder, Arc::downgrade(&place));
        Ok(place)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Creates a new folder in it for one staging.
    ///
    /// # Errors
    /// I/O errors.
    pub fn new_folder(&self) -> io::Result<PathBuf> {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.join(number.to_string());
        fs::create_dir(&folder)?;
        Ok(folder)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut known = held();
        // Removed before the lock is released, so that no other process can use the folder yet.
        let _ = fs::remove_dir_all(&self.folder);
        remove_empty(&self.made);
        known.remove(&self.folder);
        interrupted::forget(&self.folder);
    }
}

/// Removes empty folders, innermost first, up to the first one that is not empty.
fn remove_empty(made: &[PathBuf]) {
    for folder in made {
        if fs::remove_dir(folder).is_err() {
            return;
        }
    }
}

/// Creates `folder`, or takes over that of a killed run, and locks it.
fn claim(folder: &Path) -> Result<File, Unplaced> {
    loop {
        let stale = match make_private(folder) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            Err(error) => return Err(error.into()),
        };
        let held = match File::open(folder) {
            Ok(held) => held,
            // Its owner has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        // If folders cannot be locked, an existing one may be in use by another process.
        match lock(&held) {
            Lock::Mine => {}
            Lock::Unknown if !stale => {}
            Lock::Theirs | Lock::Unknown => return Err(Unplaced::Busy(folder.to_path_buf())),
        }
        if !is_still(&held, folder) {
            continue;
        }
        if stale {
            if !is_own(folder) {
                return Err(Unplaced::Busy(folder.to_path_buf()));
            }
            publish::recover(folder)?;
            let mut left = false;
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                left = true;
                match path.is_dir() {
                    true => fs::remove_dir_all(&path)?,
                    false => fs::remove_file(&path)?,
                }
            }
            // An empty folder may belong to a process that has just started and now fails to lock it.
            if left {
                interrupted::has_cleared(folder);
            }
        }
        return Ok(held);
    }
}

/// Removes hidden folders of other outputs in `parent` whose processes were killed. Failures are ignored.
fn clear_left(parent: &Path, own: &Path) {
    let entries = fs::read_dir(parent).into_iter().flatten();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let hidden = path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with(HIDDEN));
        if !hidden || path == own || !is_own(&path) {
            continue;
        }
        let left = File::open(&path).is_ok_and(|file| {
            lock(&file) == Lock::Mine
                && is_still(&file, &path)
                && publish::recover(&path).is_ok()
                && fs::remove_dir_all(&path).is_ok()
        });
        if left {
            interrupted::has_cleared(&path);
        }
    }
}

/// Creates a folder that only its owner can read, so that a model is not readable by others before it is published.
#[cfg(unix)]
fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn make_private(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)
}
