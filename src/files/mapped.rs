//! Memory-mapped files, and the handling of files that are truncated while they are read.
#![allow(unsafe_code)] // Mapping a file is unsafe because another process could change it while it is read.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

/// A mapped file that can be opened again to copy ranges of it.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    bytes: Bytes,
    /// The map that `bytes` is a view of; `None` for bytes in memory.
    map: Option<Arc<Owned>>,
    state: MapState,
}

/// The metadata by which changes of a mapped file are detected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct MapState {
    /// Device and inode number, on systems that have them.
    identity: Option<(u64, u64)>,
    length: u64,
    modified: Option<SystemTime>,
}

impl MapState {
    fn of(metadata: &Metadata) -> Self {
        Self {
            identity: identity(metadata),
            length: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }
}

impl Source {
    /// Maps the regular file at `path`; its bytes are read on access.
    ///
    /// # Errors
    /// I/O errors, and an error if `path` is not a regular file, because a pipe or device could block or never end.
    pub fn map(path: &Path) -> io::Result<Self> {
        // Checked before opening, because opening a pipe blocks.
        if !metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let map = if metadata.len() == 0 {
            None
        } else {
            // SAFETY: the map is read-only and private to this process. If another process truncates the file while it
            // is read, the system sends SIGBUS, see `report_truncation`. If another process overwrites bytes, readers
            // decode other numbers, and all readers here check what they decode.
            let map = unsafe { Mmap::map(&file)? };
            let registered = Registered::new(&map, path);
            Some(Arc::new(Owned {
                map,
                _registered: registered,
            }))
        };
        let shared = map.clone().map(|map| Bytes::from_owner(SharedMap(map)));
        Ok(Self {
            path: path.to_path_buf(),
            bytes: shared.unwrap_or_default(),
            map,
            state: MapState::of(&metadata),
        })
    }

    /// Bytes that do not come from a file.
    pub fn in_memory(bytes: Bytes) -> Self {
        Self {
            path: PathBuf::new(),
            bytes,
            map: None,
            state: MapState::default(),
        }
    }

    /// The path of the file; empty for bytes in memory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of the file, shared.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Releases the pages of the map from memory. They are read from the file again on the next access.
    #[cfg(unix)]
    pub fn let_go(&self) {
        if let Some(owned) = &self.map {
            // SAFETY: the map is read-only and backed by a file, so its pages are read from the file again. If the
            // system refuses, the pages stay in memory.
            let _ = unsafe { owned.map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }

    /// Does nothing: this system has no such call.
    #[cfg(not(unix))]
    pub fn let_go(&self) {}

    /// The mapped file, opened again; `None` if another file is at its path now. The map keeps the old bytes in this
    /// case.
    ///
    /// # Errors
    /// As [`Source::check`].
    pub fn open(&self) -> io::Result<Option<File>> {
        let Ok(file) = File::open(&self.path) else {
            return Ok(None);
        };
        let metadata = file.metadata()?;
        self.compare(&metadata)?;
        let is_mapped = self.state.identity.is_some()
            && self.state.identity == MapState::of(&metadata).identity;
        Ok(is_mapped.then_some(file))
    }

    /// Checks that the file has not changed since it was mapped. Needed because the truncated part of a page reads as
    /// zeros.
    ///
    /// # Errors
    /// An error if the file was truncated or changed in place. Replacing it by another file at the same path is no
    /// error.
    pub fn check(&self) -> io::Result<()> {
        metadata(&self.path).map_or(Ok(()), |found| self.compare(&found))
    }

    fn compare(&self, metadata: &Metadata) -> io::Result<()> {
        let (found, path) = (MapState::of(metadata), self.path.display());
        if self.state.identity.is_none()
            || found.identity != self.state.identity
            || found == self.state
        {
            return Ok(());
        }
        Err(match found.length < self.state.length {
            true => self.truncated(),
            false => io::Error::other(format!("{path} was changed while it was read")),
        })
    }

    /// The error that the file was truncated while it was read.
    pub fn truncated(&self) -> io::Error {
        let path = self.path.display();
        io::Error::other(format!("{path} was truncated while it was read"))
    }

    /// The offset of `part` in this file, in bytes, if it is a slice of the map.
    pub fn offset_of(&self, part: &Bytes) -> Option<u64> {
        // The map is held, so its address range belongs to it alone and addresses can be compared.
        let offset = part
            .as_ptr()
            .addr()
            .checked_sub(self.bytes.as_ptr().addr())?;
        let inside = !part.is_empty() && offset + part.len() <= self.bytes.len();
        inside.then_some(offset as u64)
    }
}

/// A map and its entry in [`MAPS`]. The entry is removed before the map.
#[derive(Debug)]
struct Owned {
    _registered: Registered,
    map: Mmap,
}

/// A reference to a map, held by the `Bytes` that are slices of it.
struct SharedMap(Arc<Owned>);

impl AsRef<[u8]> for SharedMap {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

/// All maps of this process by start address, each with end address and path.
static MAPS: Mutex<BTreeMap<usize, (usize, PathBuf)>> = Mutex::new(BTreeMap::new());

/// The entry of a map in [`MAPS`], which is removed when this is dropped.
#[derive(Debug)]
struct Registered(usize);

impl Registered {
    fn new(map: &Mmap, path: &Path) -> Self {
        let start = map.as_ptr().addr();
        let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
        maps.insert(start, (start + map.len(), path.to_path_buf()));
        Self(start)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
        maps.remove(&self.0);
    }
}

/// Installs a handler of SIGBUS, which occurs if a mapped file is truncated while it is read: the process then ends
/// with exit code 1 and a message on standard error. To be called by programs only, because a library should not
/// install signal handlers.
///
/// # Errors
/// I/O errors.
#[cfg(target_os = "linux")]
pub fn report_truncation() -> io::Result<()> {
    use signal_hook::consts::SIGBUS;
    // SAFETY: the action does only what a signal handler may: it takes a lock only if it is free, reads without
    // allocating, writes to a descriptor, and ends the process without running anything else. For SIGBUS the system fills
    // in the address.
    unsafe {
        signal_hook_registry::register_sigaction(SIGBUS, |info| {
            end_by_truncation(info.si_addr().addr());
        })
    }?;
    Ok(())
}

/// Does nothing on other systems: the signal kills the process.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn report_truncation() -> io::Result<()> {
    Ok(())
}

/// Prints the path of the map at `address`, and ends the process.
#[cfg(target_os = "linux")]
fn end_by_truncation(address: usize) {
    use std::os::unix::ffi::OsStrExt;
    let say = |bytes: &[u8]| {
        let _ = rustix::io::write(rustix::stdio::stderr(), bytes);
    };
    say(b"error: ");
    // If another thread holds the lock, the path is not printed.
    let maps = MAPS.try_lock().ok();
    let before = maps.as_ref().and_then(|m| m.range(..=address).next_back());
    match before {
        Some((_, (end, path))) if address < *end => {
            for byte in path.as_os_str().as_bytes() {
                say(&[if byte.is_ascii_control() { b'?' } else { *byte }]);
            }
        }
        // The runtime has its own maps.
        _ => say(b"a model file"),
    }
    say(b": the file was truncated while it was read\n");
    signal_hook::low_level::exit(1);
}

/// Device and inode number of a file, on systems that have them.
#[cfg(unix)]
fn identity(metadata: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> Option<(u64, u64)> {
    None
}
