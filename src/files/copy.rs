//! Files and ranges of files, copied without bringing them into this process' memory where the system can. Holes stay holes.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// How much is copied at a time where the system cannot copy a range by itself.
const CHUNK: usize = 1 << 20;

/// Copies a regular file with its permissions, and has the system write it out.
///
/// # Errors
/// The system's.
pub fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let like = source.metadata()?;
    let mut target = File::create_new(to)?;
    copy_range(&mut source, 0, &mut target, like.len())?;
    target.set_len(like.len())?;
    follow(&like, to)?;
    target.sync_all()
}

/// Copies `length` bytes from `offset` of `source` to the position of `target`, where nothing is yet: holes of `source` are
/// skipped there, and one at the end leaves the file as long as the data before it.
///
/// # Errors
/// The system's, and an unexpected end where `source` is too short.
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

/// Copies bytes that are no hole.
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

/// The first range of data that begins at `at` or later and before `end`; everything is data to a file system that knows
/// no holes.
///
/// # Errors
/// The system's.
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
        // Nothing but a hole up to the end of the file.
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some((at, end))),
        Err(error) => Err(error.into()),
    }
}

/// As on Linux, for systems that are not asked for holes.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn next_data(_: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    Ok((at < end).then_some((at, end)))
}

/// As much as the file system copies (or links) by itself: all of it, or nothing where it cannot.
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

/// Gives the file or folder at `path` the permissions of `like`, and its owner where this process may. A folder stays one
/// that its owner can write to.
///
/// # Errors
/// The system's, when the permissions cannot be set.
#[cfg(unix)]
pub fn follow(like: &Metadata, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    // Only a privileged process can give files away; for others the output is theirs, as every file they make.
    let _ = std::os::unix::fs::chown(path, Some(like.uid()), Some(like.gid()));
    let own = if like.is_dir() { 0o700 } else { 0 };
    let mode = (like.mode() & 0o777) | own;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Gives the file at `path` the permissions of `like`.
///
/// # Errors
/// The system's.
#[cfg(not(unix))]
pub fn follow(like: &Metadata, path: &Path) -> io::Result<()> {
    fs::set_permissions(path, like.permissions())
}
