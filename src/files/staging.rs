//! Staging of outputs: a model, folder or file is written into a hidden folder beside its path, and moved to the path
//! when it is complete. If it is dropped before that, it is removed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::files::copy::{copy_file, follow};
use crate::files::interrupted::has_published;
use crate::files::place::{Place, Unplaced};
use crate::files::publish;
use crate::files::rejected::keep_rejected;
use crate::files::swap;

/// A staged output.
pub struct Staging {
    folder: PathBuf,
    /// The output path as given.
    target: PathBuf,
    /// The target of the link, if the output path is a link to a folder; else the same path.
    real: PathBuf,
    kind: StagedKind,
    place: Arc<Place>,
}

/// The kind of an output.
enum StagedKind {
    /// A single file.
    File,
    /// An .onnx file and its data file, with the permissions of this file.
    Model(PathBuf),
    /// A folder, with the permissions of the folder `like`.
    Folder {
        like: PathBuf,
        /// Whether its files are moved one by one into the existing folder.
        in_place: bool,
    },
}

/// Why an output was not staged or not published. What existed at its path is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// A file or folder cannot be written.
    #[error("{path}: {action}: {cause}")]
    Io {
        /// The output or a file of it.
        path: String,
        /// The failed action.
        action: &'static str,
        /// The I/O error.
        cause: io::Error,
    },
    /// Another run is writing the same output.
    #[error(
        "{path}: another run is writing this output (it holds {held}): wait until it has ended, or write to another path"
    )]
    Busy {
        /// The output.
        path: String,
        /// The folder that the other run has locked.
        held: String,
    },
}

/// The error of `action` on `path`.
pub(super) fn failed(
    path: &Path,
    action: &'static str,
) -> impl Fn(io::Error) -> StagingError + use<> {
    let path = path.display().to_string();
    move |cause| StagingError::Io {
        path: path.clone(),
        action,
        cause,
    }
}

/// The error of an output folder that is a file.
pub(super) fn over_a_file(target: &Path) -> StagingError {
    let action =
        "a folder cannot replace a file: the output is a new folder, or a name that ends in .onnx";
    failed(target, action)(io::ErrorKind::AlreadyExists.into())
}

/// The error of an output file that is a folder.
pub(super) fn over_a_folder(target: &Path) -> StagingError {
    failed(target, "writing the output over a folder")(io::ErrorKind::IsADirectory.into())
}

/// The error of a hidden folder that cannot be made in `parent`.
pub(super) fn beside_failed(parent: &Path) -> impl Fn(io::Error) -> StagingError + use<> {
    failed(parent, "making a temporary folder for the output")
}

impl Staging {
    /// Stages the file `target`.
    ///
    /// # Errors
    /// [`StagingError`] if nothing can be written there, or another run is writing the same output.
    pub fn file(target: &Path) -> Result<Self, StagingError> {
        Self::beside(target, StagedKind::File)
    }

    /// Stages the model `target`, whose files get the permissions of the file `like`.
    ///
    /// # Errors
    /// As [`Staging::file`].
    pub fn model(target: &Path, like: &Path) -> Result<Self, StagingError> {
        Self::beside(target, StagedKind::Model(like.to_path_buf()))
    }

    /// Stages the folder `target`. It gets the permissions of the folder `like`, and its files those of the same names
    /// in `like`.
    ///
    /// # Errors
    /// As [`Staging::file`].
    pub fn folder(target: &Path, like: &Path) -> Result<Self, StagingError> {
        if target.exists() && !target.is_dir() {
            return Err(over_a_file(target));
        }
        let kind = |in_place| StagedKind::Folder {
            like: like.to_path_buf(),
            in_place,
        };
        if !target.exists() {
            return Self::beside(target, kind(false));
        }
        // If `target` is a link, the link is kept and its target is replaced.
        let real = fs::canonicalize(target).map_err(failed(target, "reading"))?;
        let beside = match stays_in_place(&real) {
            true => None,
            false => match Self::beside(&real, kind(false)) {
                Err(StagingError::Io { cause, .. }) if keeps_out(&cause) => None,
                staged => Some(staged?),
            },
        };
        let mut staging = match beside {
            Some(staging) => staging,
            None => Self::within(&real, &real, kind(true))?,
        };
        staging.target = target.to_path_buf();
        Ok(staging)
    }

    fn beside(target: &Path, kind: StagedKind) -> Result<Self, StagingError> {
        if !matches!(kind, StagedKind::Folder { .. }) && target.is_dir() {
            return Err(over_a_folder(target));
        }
        Self::within(publish::parent(target), target, kind)
    }

    fn within(parent: &Path, target: &Path, kind: StagedKind) -> Result<Self, StagingError> {
        let name = target.file_name().unwrap_or_default();
        let error = beside_failed(parent);
        let place = Place::claim(parent, name).map_err(|unplaced| match unplaced {
            Unplaced::Io(cause) => error(cause),
            Unplaced::Busy(held) => StagingError::Busy {
                path: target.display().to_string(),
                held: held.display().to_string(),
            },
        })?;
        let folder = place.new_folder().map_err(error)?;
        Ok(Self {
            folder,
            target: target.to_path_buf(),
            real: target.to_path_buf(),
            kind,
            place,
        })
    }

    /// The path of the output after publishing.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The current path of the file or model in the hidden folder.
    #[must_use]
    pub fn staged(&self) -> PathBuf {
        self.path(Path::new(self.real.file_name().unwrap_or_default()))
    }

    /// The path of the file `relative` in the hidden folder.
    #[must_use]
    pub fn path(&self, relative: &Path) -> PathBuf {
        self.folder.join(relative)
    }

    /// Copies the file `relative` from the folder `like`, with its permissions.
    ///
    /// # Errors
    /// [`StagingError::Io`].
    pub fn copy(&self, relative: &Path) -> Result<(), StagingError> {
        let from = self.original(relative);
        let to = self.place_for(relative)?;
        copy_file(&from, &to).map_err(failed(&from, "copying"))
    }

    /// Writes `bytes` to the file `relative`, with the permissions of the file of this name in the folder `like`.
    ///
    /// # Errors
    /// [`StagingError::Io`].
    pub fn write(&self, relative: &Path, bytes: &[u8]) -> Result<(), StagingError> {
        let path = self.place_for(relative)?;
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            if let Ok(like) = fs::metadata(self.original(relative)) {
                follow(&like, &path)?;
            }
            file.sync_all()
        });
        written.map_err(failed(&path, "writing"))
    }

    fn original(&self, relative: &Path) -> PathBuf {
        match &self.kind {
            StagedKind::Folder { like, .. } => like.join(relative),
            StagedKind::File | StagedKind::Model(_) => relative.to_path_buf(),
        }
    }

    fn place_for(&self, relative: &Path) -> Result<PathBuf, StagingError> {
        let path = self.path(relative);
        let parent = publish::parent(&path);
        fs::create_dir_all(parent).map_err(failed(parent, "making a folder"))?;
        Ok(path)
    }

    /// Moves the output to its path, which is returned.
    ///
    /// # Errors
    /// [`StagingError::Io`].
    pub fn publish(self) -> Result<PathBuf, StagingError> {
        let (staged, target) = (&self.folder, &self.real);
        let published = self.settle().and_then(|()| match &self.kind {
            StagedKind::File => publish::file(staged, target),
            StagedKind::Model(_) => publish::model(staged, target, self.place.folder()),
            StagedKind::Folder { in_place: true, .. } => swap::into_folder(staged, target),
            StagedKind::Folder { .. } => swap::folder(staged, target, self.place.folder()),
        });
        published.map_err(failed(&self.target, "giving the output its name"))?;
        has_published(&self.target);
        Ok(self.target.clone())
    }

    /// Moves an output that failed to the folder `<name>.rejected` beside its path, for inspection. Returns the folder.
    ///
    /// # Errors
    /// [`StagingError::Io`].
    pub fn reject(self) -> Result<PathBuf, StagingError> {
        // For in-place folders it is inside the folder, because nothing else is known to be on the same file system.
        let named = match &self.kind {
            StagedKind::Folder { in_place: true, .. } => {
                self.target.join(self.real.file_name().unwrap_or_default())
            }
            _ => self.target.clone(),
        };
        let kept = self
            .settle()
            .and_then(|()| keep_rejected(&named, &self.folder));
        kept.map_err(failed(&self.target, "keeping the rejected output"))
    }

    /// Sets the permissions of the staged files, and flushes them to disk.
    fn settle(&self) -> io::Result<()> {
        match &self.kind {
            StagedKind::File => File::open(self.staged())?.sync_all(),
            StagedKind::Model(like) => {
                let like = fs::metadata(like);
                for entry in fs::read_dir(&self.folder)? {
                    let path = entry?.path();
                    let file = File::open(&path)?;
                    // The file `like` may no longer exist.
                    if let Ok(like) = &like {
                        follow(like, &path)?;
                    }
                    file.sync_all()?;
                }
                Ok(())
            }
            StagedKind::Folder { like, .. } => {
                for entry in walkdir::WalkDir::new(&self.folder) {
                    let entry = entry?;
                    let relative = entry.path().strip_prefix(&self.folder);
                    if let (true, Ok(relative)) = (entry.file_type().is_dir(), relative)
                        && let Ok(like) = fs::metadata(like.join(relative))
                    {
                        follow(&like, entry.path())?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After publishing, the folder is gone or contains the old output.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Whether the error means that the folder is not writable.
pub(super) fn keeps_out(cause: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(cause.kind(), PermissionDenied | ReadOnlyFilesystem)
}

/// Whether a folder must not be replaced: it contains the working directory, or is a mount point.
pub(super) fn stays_in_place(folder: &Path) -> bool {
    let here = std::env::current_dir().and_then(fs::canonicalize);
    here.is_ok_and(|here| here.starts_with(folder)) || begins_a_file_system(folder)
}

#[cfg(target_os = "linux")]
fn begins_a_file_system(folder: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    use std::os::unix::fs::MetadataExt;
    let root = statx(CWD, folder, AtFlags::empty(), StatxFlags::empty())
        .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    root || device(folder) != folder.parent().and_then(device)
}

#[cfg(not(target_os = "linux"))]
fn begins_a_file_system(folder: &Path) -> bool {
    folder.parent().is_none()
}
