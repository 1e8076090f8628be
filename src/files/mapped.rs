//! Files mapped into memory.
#![allow(unsafe_code)] // Mapping a file is unsafe because another process could change it while it is read.

use std::fs::{File, Metadata, metadata};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;

/// A mapped file that can be opened again, for copying ranges of it without reading them.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    bytes: Bytes,
    identity: Option<(u64, u64)>,
}

impl Source {
    /// Maps the regular file at `path`; its bytes are read when they are touched.
    ///
    /// # Errors
    /// The system's, or that `path` is no regular file: a pipe or a device could block or never end.
    pub fn map(path: &Path) -> io::Result<Self> {
        // Before opening, because opening a pipe waits for its other end.
        if !metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let bytes = if metadata.len() == 0 {
            Bytes::new()
        } else {
            // SAFETY: the map is read-only and private to this process. Another process that truncates the file while
            // it is read would end this one by a signal; models are not written to while they are converted.
            Bytes::from_owner(unsafe { Mmap::map(&file)? })
        };
        Ok(Self {
            path: path.to_path_buf(),
            bytes,
            identity: identity(&metadata),
        })
    }

    /// Bytes that are in memory and in no file.
    pub fn in_memory(bytes: Bytes) -> Self {
        Self {
            path: PathBuf::new(),
            bytes,
            identity: None,
        }
    }

    /// Where the file was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of the file, shared.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The mapped file itself; `None` if another one stands under its name by now. The map keeps the old bytes then.
    pub fn open(&self) -> Option<File> {
        let file = File::open(&self.path).ok()?;
        let found = identity(&file.metadata().ok()?)?;
        (self.identity == Some(found)).then_some(file)
    }

    /// The offset of `part` in this file, in bytes, if it is a slice of the map.
    pub fn offset_of(&self, part: &Bytes) -> Option<u64> {
        // Nothing else can lie within the map while it is held, so addresses decide.
        let offset = part
            .as_ptr()
            .addr()
            .checked_sub(self.bytes.as_ptr().addr())?;
        let inside = !part.is_empty() && offset + part.len() <= self.bytes.len();
        inside.then_some(offset as u64)
    }
}

/// Device and number of a file, where the system has such.
#[cfg(unix)]
fn identity(metadata: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> Option<(u64, u64)> {
    None
}
