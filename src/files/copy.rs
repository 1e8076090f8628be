//! Copies of files and of ranges of files, by the kernel where possible. Holes of sparse files are preserved.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Size of the buffer, for systems without a copy by the kernel.
const CHUNK: usize = 1 << 20;

/// Copies a regular file with its permissions, and flushes it to disk.
///
/// # Errors
/// I/O errors.
pub fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let like = source.metadata()?;
    let mut target = File::create_new(to)?;
    copy_range(&mut source, 0, &mut target, like.len())?;
    target.set_len(like.len())?;
    follow(&like, to)?;
    target.sync_all()
}

/// Copies `length` bytes from `offset` of `source` to the current position of `target`, which must be its end. Holes of
/// `source` are skipped, so after a hole at the end `target` is shorter by this hole.
///
/// # Errors
/// I/O errors, and an unexpected end of file if `source` is too short.
pub fn copy_range(
    source: &mut File,
    offset: u64,
    target: &mut File,
    length: u64,
) -> io::Result<()> {
    let end = offset + length;
    if source.metadata()?.len() < end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let start = target.stream_position()?;
    let mut at = offset;
    while let Some((from, to)) = next_data(source, at, end)? {
        target.seek(SeekFrom::Start(start + (from - offset)))?;
        copy_data(source, from, target, to - from)?;
        at = to;
    }
    Ok(())
}

/// Copies a range without holes.
fn copy_data(source: &mut File, offset: u64, target: &mut File, length: u64) -> io::Result<()> {
    let copied = copy_in_kernel(source, offset, target, length)?;
    if copied < length {
        source.seek(SeekFrom::Start(offset + copied))?;
        copy_through_buffer(&mut source.take(length - copied), target, length - copied)?;
    }
    Ok(())
}

fn copy_through_buffer(
    source: &mut impl Read,
    target: &mut File,
    mut missing: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while missing > 0 {
        let read = match source.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        target.write_all(buffer.get(..read).unwrap_or_default())?;
        missing -= read as u64;
    }
    Ok(())
}

/// The first range of data between `at` and `end`. On file systems without holes, it is the whole range.
///
/// # Errors
/// I/O errors.
#[cfg(target_os = "linux")]
pub fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    if at >= end {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(from) if from >= end => Ok(None),
        Ok(from) => {
            let to = seek(file, SeekFrom::Hole(from))?;
            Ok(Some((from, to.clamp(from + 1, end))))
        }
        // There is only a hole up to the end of the file.
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some((at, end))),
        Err(error) => Err(error.into()),
    }
}

/// The whole range: holes are detected on Linux only.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn next_data(_: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    Ok((at < end).then_some((at, end)))
}

/// Copies by the kernel; returns the number of copied bytes, which is less than `length` if the file systems do not
/// support it.
#[cfg(target_os = "linux")]
fn copy_in_kernel(source: &File, offset: u64, target: &File, length: u64) -> io::Result<u64> {
    use rustix::io::Errno;
    let mut from = offset;
    let end = offset + length;
    while from < end {
        let step = usize::try_from(end - from)
            .unwrap_or(usize::MAX)
            .min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, None, step) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM) => {
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(from - offset)
}

#[cfg(not(target_os = "linux"))]
fn copy_in_kernel(_: &File, _: u64, _: &File, _: u64) -> io::Result<u64> {
    Ok(0)
}

/// Whether two files hold the same bytes.
///
/// # Errors
/// I/O errors.
pub fn same_bytes(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (Vec::new(), Vec::new());
    loop {
        for (file, block) in [(&mut one, &mut a), (&mut other, &mut b)] {
            block.clear();
            file.take(CHUNK as u64).read_to_end(block)?;
        }
        if a != b || a.is_empty() {
            return Ok(a == b);
        }
    }
}

/// Gives the file or folder at `path` the permissions of `like`, and its owner if this process is allowed to. A folder
/// remains writable for its owner.
///
/// # Errors
/// I/O errors, if the permissions cannot be set.
#[cfg(unix)]
pub fn follow(like: &Metadata, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    // Only a privileged process can change the owner; otherwise the output belongs to the user of this process.
    let _ = std::os::unix::fs::chown(path, Some(like.uid()), Some(like.gid()));
    let own = if like.is_dir() { 0o700 } else { 0 };
    let mode = (like.mode() & 0o777) | own;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Gives the file at `path` the permissions of `like`.
///
/// # Errors
/// I/O errors.
#[cfg(not(unix))]
pub fn follow(like: &Metadata, path: &Path) -> io::Result<()> {
    fs::set_permissions(path, like.permissions())
}
