//! Files mapped into memory, and what happens when one is truncated under a reader.
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

/// A mapped file that can be opened again, for copying ranges of it without reading them.
#[derive(Debug, Clone)]
pub struct Source {
    path: PathBuf,
    bytes: Bytes,
    /// What `bytes` are a view of, where that is a map.
    map: Option<Arc<Owned>>,
    state: State,
}

/// What tells whether a file is the one that was mapped, and as it was then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    /// Device and number, where the system has such.
    identity: Option<(u64, u64)>,
    length: u64,
    modified: Option<SystemTime>,
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        Self {
            identity: identity(metadata),
            length: metadata.len(),
            modified: metadata.modified().ok(),
        }
    }
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
        let map = if metadata.len() == 0 {
            None
        } else {
            // SAFETY: the map is read-only and private to this process. Another process may truncate the file while it
            // is read: then the system sends SIGBUS, and `report_truncation` says what happened. Bytes that another
            // process overwrites are plain numbers to every reader here: each checks what it decodes.
            let map = unsafe { Mmap::map(&file)? };
            let registered = Registered::new(&map, path);
            Some(Arc::new(Owned {
                map,
                _registered: registered,
            }))
        };
        let shared = map.clone().map(|map| Bytes::from_owner(Shared(map)));
        Ok(Self {
            path: path.to_path_buf(),
            bytes: shared.unwrap_or_default(),
            map,
            state: State::of(&metadata),
        })
    }

    /// Bytes that are in memory and in no file.
    pub fn in_memory(bytes: Bytes) -> Self {
        Self {
            path: PathBuf::new(),
            bytes,
            map: None,
            state: State::default(),
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

    /// Lets go of what was read so far: its pages leave this process' memory, and are read again when they are touched.
    #[cfg(unix)]
    pub fn let_go(&self) {
        if let Some(owned) = &self.map {
            // SAFETY: the map is read-only and of a file, so that its pages come back as the file has them. A system that
            // refuses keeps them, and nothing but memory is lost.
            let _ = unsafe { owned.map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }

    /// As on Unix, for systems that take no such advice.
    #[cfg(not(unix))]
    pub fn let_go(&self) {}

    /// The mapped file itself; `None` if another one stands under its name by now. The map keeps the old bytes then.
    ///
    /// # Errors
    /// As [`Source::check`].
    pub fn open(&self) -> io::Result<Option<File>> {
        let Ok(file) = File::open(&self.path) else {
            return Ok(None);
        };
        let metadata = file.metadata()?;
        self.compare(&metadata)?;
        let is_mapped =
            self.state.identity.is_some() && self.state.identity == State::of(&metadata).identity;
        Ok(is_mapped.then_some(file))
    }

    /// Makes sure that the file has been left alone since it was mapped: the end of a page that a truncation has cut reads
    /// as zeros.
    ///
    /// # Errors
    /// That the file was truncated or written to. One that another file has replaced under its name is as it was.
    pub fn check(&self) -> io::Result<()> {
        metadata(&self.path).map_or(Ok(()), |found| self.compare(&found))
    }

    fn compare(&self, metadata: &Metadata) -> io::Result<()> {
        let (found, path) = (State::of(metadata), self.path.display());
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

    /// The error that the file was cut while it was read.
    pub fn truncated(&self) -> io::Error {
        let path = self.path.display();
        io::Error::other(format!("{path} was truncated while it was read"))
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

/// A map and its entry in the list of maps, which goes first.
#[derive(Debug)]
struct Owned {
    _registered: Registered,
    map: Mmap,
}

/// A map that is held by its source and by slices of it.
struct Shared(Arc<Owned>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

/// Every map of this process by the address of its first byte: the address after its last one, and its file.
static MAPS: Mutex<BTreeMap<usize, (usize, PathBuf)>> = Mutex::new(BTreeMap::new());

/// The entry of one map, as long as this lives.
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

/// Has the process end with exit code 1 and a message on standard error when a mapped file is truncated while it is read,
/// in place of being killed by SIGBUS. For programs: a library leaves the signals of its process alone.
///
/// # Errors
/// The system's.
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

/// Systems that are not told apart from others: the signal ends the process.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn report_truncation() -> io::Result<()> {
    Ok(())
}

/// Says which file the map at `address` was of, and ends the process.
#[cfg(target_os = "linux")]
fn end_by_truncation(address: usize) {
    use std::os::unix::ffi::OsStrExt;
    let say = |bytes: &[u8]| {
        let _ = rustix::io::write(rustix::stdio::stderr(), bytes);
    };
    say(b"error: ");
    // Whoever holds the lock right now reads no map; then the name stays unsaid.
    let maps = MAPS.try_lock().ok();
    let before = maps.as_ref().and_then(|m| m.range(..=address).next_back());
    match before {
        Some((_, (end, path))) if address < *end => {
            for byte in path.as_os_str().as_bytes() {
                say(&[if byte.is_ascii_control() { b'?' } else { *byte }]);
            }
        }
        // A runtime maps files of its own.
        _ => say(b"a model file"),
    }
    say(b": the file was truncated while it was read\n");
    signal_hook::low_level::exit(1);
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
