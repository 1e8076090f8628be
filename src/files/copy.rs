//! Ranges of files, copied without bringing them into this process' memory where the system can.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// How much is copied at a time where the system cannot copy a range by itself.
const CHUNK: usize = 1 << 20;

/// Copies `length` bytes from `offset` of `source` to the position of `target`.
///
/// # Errors
/// The system's, and an unexpected end where `source` is too short.
pub fn copy_range(
    source: &mut File,
    offset: u64,
    target: &mut File,
    length: u64,
) -> io::Result<()> {
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
