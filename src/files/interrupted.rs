//! What has to go when the user stops a run: folders that are not outputs yet.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

static TEMPORARY: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A temporary folder, as long as this lives.
#[derive(Debug)]
pub struct Temporary(PathBuf);

impl Temporary {
    /// Says that `folder` is one.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        let mut known = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(folder.to_path_buf());
        Self(folder.to_path_buf())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let mut known = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&self.0);
    }
}

/// Removes every temporary folder of this process, as it is about to end.
pub fn clear() {
    let known = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner);
    for folder in known.iter() {
        // Another thread may still write into it: once more takes that as well. What stays is hidden and harmless.
        let _ = fs::remove_dir_all(folder).or_else(|_| fs::remove_dir_all(folder));
    }
}
