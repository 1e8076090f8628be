//! The hidden folder beside an output in which the output is staged. It is locked while a process uses it, so that there
//! is one writer for each output, and what a killed run left is told from what a running one needs.

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

/// Those that this process holds. Its own rewrites of one output share one.
static HELD: Mutex<BTreeMap<PathBuf, Weak<Place>>> = Mutex::new(BTreeMap::new());

/// A hidden folder that this process alone writes to. It disappears with the last value that refers to it.
pub struct Place {
    folder: PathBuf,
    /// Keeps the lock.
    _held: File,
    /// Folders that were made to hold this one.
    made: Vec<PathBuf>,
    staged: AtomicUsize,
}

/// Why there is no place.
pub enum Unplaced {
    /// Another process is writing this output, and holds this folder.
    Busy(PathBuf),
    /// The system refuses.
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
    /// The place in `parent` for an output called `name`. What killed runs left in `parent` is cleared first.
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
            // One folder has one path, so that two spellings of an output are seen to be one.
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

    /// A new folder in it, for one staging; those who may read the folders around may read what is published of it.
    ///
    /// # Errors
    /// The system's.
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
        // Before the lock is let go of: nobody else can have made anything in it.
        let _ = fs::remove_dir_all(&self.folder);
        remove_empty(&self.made);
        known.remove(&self.folder);
        interrupted::forget(&self.folder);
    }
}

/// Removes folders, innermost first, up to one that holds something: the output, or what another process put there.
fn remove_empty(made: &[PathBuf]) {
    for folder in made {
        if fs::remove_dir(folder).is_err() {
            return;
        }
    }
}

/// Makes `folder` or takes over one that a killed run left, and locks it.
fn claim(folder: &Path) -> Result<File, Unplaced> {
    loop {
        let stale = match make_private(folder) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            Err(error) => return Err(error.into()),
        };
        let held = match File::open(folder) {
            Ok(held) => held,
            // Its owner has just ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        // Where folders cannot be locked, one that is there may be another run's.
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
            // An empty one may be that of a run which has only just begun, and is refused now.
            if left {
                interrupted::has_cleared(folder);
            }
        }
        return Ok(held);
    }
}

/// Removes the places of other outputs in `parent` whose owners were killed. What cannot be removed is no obstacle.
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

/// A folder that only its owner can look into: a model in it is not public before it has its name.
#[cfg(unix)]
fn make_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn make_private(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)
}
