//! Locks of folders (`flock`), which are released when the process ends in any way.

use std::fs::{self, File};
use std::path::Path;

/// Whether `folder` is a folder that only this user can write to. Folders of other users, in a public temporary folder
/// for example, are not trusted.
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

/// The result of an attempt to lock a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// This process has locked it.
    Mine,
    /// Another process has locked it.
    Theirs,
    /// The file system cannot lock folders.
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

/// Whether the opened folder is the one that is now at the path `folder`.
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
