//! Whether an output can be staged, told without writing anything.

use std::fs;
use std::io;
use std::path::Path;

use crate::files::publish;
use crate::files::staging::{
    StagingError, beside_failed, failed, keeps_out, over_a_file, over_a_folder, stays_in_place,
};

/// Checks that a file or model can be staged for `target`.
///
/// # Errors
/// [`StagingError`], as of [`crate::files::staging::Staging::file`].
pub fn check_file(target: &Path) -> Result<(), StagingError> {
    if target.is_dir() {
        return Err(over_a_folder(target));
    }
    check_beside(target)
}

/// Checks that a folder can be staged for `target`.
///
/// # Errors
/// [`StagingError`], as of [`crate::files::staging::Staging::folder`].
pub fn check_folder(target: &Path) -> Result<(), StagingError> {
    if !target.exists() {
        return check_beside(target);
    }
    if !target.is_dir() {
        return Err(over_a_file(target));
    }
    let real = fs::canonicalize(target).map_err(failed(target, "reading"))?;
    match stays_in_place(&real) {
        true => writable(&real).map_err(beside_failed(&real)),
        false => match check_beside(&real) {
            Err(StagingError::Io { cause, .. }) if keeps_out(&cause) => {
                writable(&real).map_err(beside_failed(&real))
            }
            checked => checked,
        },
    }
}

/// Checks that a folder can be made beside `target`, together with the parent folders that do not exist yet.
fn check_beside(target: &Path) -> Result<(), StagingError> {
    let parent = publish::parent(target);
    let there = parent.ancestors().find(|folder| folder.exists());
    let there = there.filter(|folder| !folder.as_os_str().is_empty());
    writable(there.unwrap_or(Path::new("."))).map_err(beside_failed(parent))
}

/// Whether files can be made in the folder at `path`, by its permissions and those of its file system.
fn writable(path: &Path) -> io::Result<()> {
    // The system's own words for a path that is no folder.
    fs::read_dir(path)?;
    #[cfg(unix)]
    rustix::fs::access(
        path,
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
    )?;
    #[cfg(not(unix))]
    if fs::metadata(path)?.permissions().readonly() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}
