//! Folders locked by the process that uses them: the lock goes with the process, however it ends.

use std::fs::{self, File};
use std::path::Path;

/// Whether `folder` is a folder that this user alone can have written to: what another user puts where everybody may is
/// not to be trusted.
#[cfg(unix)]
pub fn is_own(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let user = rustix::process::geteuid().as_raw();
    let found = fs::symlink_metadata(folder);
    found.is_ok_and(|m| m.is_dir() && m.uid() == user && m.mode() & 0o077 == 0)
}

#[cfg(not(unix))]
pub fn is_own(folder: &Path) -> bool {
    folder.is_dir()
}

/// Who has the lock of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// This process, now.
    Mine,
    /// Another one.
    Theirs,
    /// The file system locks no folders.
    Unknown,
}

/// Tries to lock an opened folder.
#[cfg(unix)]
pub fn lock(folder: &File) -> Lock {
    use rustix::fs::{FlockOperation, flock};
    match flock(folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Lock::Mine,
        Err(rustix::io::Errno::WOULDBLOCK) => Lock::Theirs,
        Err(_) => Lock::Unknown,
    }
}

#[cfg(not(unix))]
pub fn lock(_: &File) -> Lock {
    Lock::Unknown
}

/// Whether the opened folder is the one that has this name now.
#[cfg(unix)]
pub fn is_still(held: &File, folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    held.metadata()
        .and_then(|a| Ok(same(a, fs::metadata(folder)?)))
        .unwrap_or(false)
}

#[cfg(not(unix))]
pub fn is_still(_: &File, folder: &Path) -> bool {
    folder.is_dir()
}
