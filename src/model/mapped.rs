//! Files mapped into memory.
#![allow(unsafe_code)] // Mapping a file is unsafe because another process could change it while it is read.

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

/// The bytes of the regular file at `path`, read when they are touched.
///
/// # Errors
/// The system's, or that `path` is no regular file: a pipe or a device could block or never end.
pub fn map(path: &Path) -> io::Result<Bytes> {
    let kind = std::fs::metadata(path)?;
    if !kind.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(path)?;
    if kind.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read-only and private to this process. Another process that truncates the file while it is
    // read would end this one by a signal; models are not written to while they are converted.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}
