//! Outputs that are not there yet: a model, a folder or a file is written into a hidden folder beside its name, and takes
//! the name in one step when it is whole. Dropped before that, it disappears.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::files::copy::{copy_file, follow};
use crate::files::place::{Place, Unplaced};
use crate::files::publish;
use crate::files::rejected::keep_rejected;
use crate::files::swap;

/// An output in its hidden folder.
pub struct Staging {
    folder: PathBuf,
    /// The output, as it was named.
    target: PathBuf,
    /// What it leads to where it is a link to a folder, else the same.
    real: PathBuf,
    kind: Kind,
    place: Arc<Place>,
}

/// What an output is.
enum Kind {
    /// One file.
    File,
    /// A .onnx file and its data file, with the permissions of this file.
    Model(PathBuf),
    /// A folder, with permissions from this one.
    Folder {
        like: PathBuf,
        /// Whether its files take their places one by one in the folder that is there.
        in_place: bool,
    },
}

/// Why an output was not staged or not published. Nothing is left under its name but what was there.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The system refuses.
    #[error("{path}: {action}: {cause}")]
    Io {
        /// The output, or a file of it.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        cause: io::Error,
    },
    /// Two runs would write the same output.
    #[error(
        "{path}: another run is writing this output (it holds {held}): wait until it has ended, or write to another path"
    )]
    Busy {
        /// The output.
        path: String,
        /// The folder that the other run holds.
        held: String,
    },
}

fn failed(path: &Path, action: &'static str) -> impl Fn(io::Error) -> StagingError + use<> {
    let path = path.display().to_string();
    move |cause| StagingError::Io {
        path: path.clone(),
        action,
        cause,
    }
}

impl Staging {
    /// Begins the file `target`.
    ///
    /// # Errors
    /// [`StagingError`] when nothing can be written there, or another run is doing so.
    pub fn file(target: &Path) -> Result<Self, StagingError> {
        Self::beside(target, Kind::File)
    }

    /// Begins the model `target`, whose files get the permissions of the file `like`.
    ///
    /// # Errors
    /// As [`Staging::file`].
    pub fn model(target: &Path, like: &Path) -> Result<Self, StagingError> {
        Self::beside(target, Kind::Model(like.to_path_buf()))
    }

    /// Begins the folder `target`, which gets the permissions of the folder `like`, and its files those of the same names
    /// there.
    ///
    /// # Errors
    /// As [`Staging::file`].
    pub fn folder(target: &Path, like: &Path) -> Result<Self, StagingError> {
        if target.exists() && !target.is_dir() {
            let error = failed(target, "writing a folder over a file");
            return Err(error(io::ErrorKind::AlreadyExists.into()));
        }
        let kind = |in_place| Kind::Folder {
            like: like.to_path_buf(),
            in_place,
        };
        if !target.exists() {
            return Self::beside(target, kind(false));
        }
        // A link to a folder stays one: what it leads to is replaced.
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

    fn beside(target: &Path, kind: Kind) -> Result<Self, StagingError> {
        if !matches!(kind, Kind::Folder { .. }) && target.is_dir() {
            let error = failed(target, "writing the output over a folder");
            return Err(error(io::ErrorKind::IsADirectory.into()));
        }
        Self::within(publish::parent(target), target, kind)
    }

    fn within(parent: &Path, target: &Path, kind: Kind) -> Result<Self, StagingError> {
        let name = target.file_name().unwrap_or_default();
        let error = failed(parent, "making a temporary folder for the output");
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

    /// Where the output will be.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where the file or model is now.
    #[must_use]
    pub fn staged(&self) -> PathBuf {
        self.path(Path::new(self.real.file_name().unwrap_or_default()))
    }

    /// Where the file with this path, relative to the hidden folder, is now.
    #[must_use]
    pub fn path(&self, relative: &Path) -> PathBuf {
        self.folder.join(relative)
    }

    /// Copies `relative` from the folder that this one is like, with its permissions.
    ///
    /// # Errors
    /// [`StagingError::Io`].
    pub fn copy(&self, relative: &Path) -> Result<(), StagingError> {
        let from = self.original(relative);
        let to = self.place_for(relative)?;
        copy_file(&from, &to).map_err(failed(&from, "copying"))
    }

    /// Writes `bytes` under `relative`, with the permissions of the file of this name in the folder that this one is like.
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
            Kind::Folder { like, .. } => like.join(relative),
            Kind::File | Kind::Model(_) => relative.to_path_buf(),
        }
    }

    fn place_for(&self, relative: &Path) -> Result<PathBuf, StagingError> {
        let path = self.path(relative);
        let parent = publish::parent(&path);
        fs::create_dir_all(parent).map_err(failed(parent, "making a folder"))?;
        Ok(path)
    }

    /// Gives the output its name.
    ///
    /// # Errors
    /// [`StagingError::Io`].
    pub fn publish(self) -> Result<PathBuf, StagingError> {
        let (staged, target) = (&self.folder, &self.real);
        let published = self.settle().and_then(|()| match &self.kind {
            Kind::File => publish::file(staged, target),
            Kind::Model(_) => publish::model(staged, target, self.place.folder()),
            Kind::Folder { in_place: true, .. } => swap::into_folder(staged, target),
            Kind::Folder { .. } => swap::folder(staged, target, self.place.folder()),
        });
        published.map_err(failed(&self.target, "giving the output its name"))?;
        Ok(self.target.clone())
    }

    /// Keeps an output that failed in a folder `<name>.rejected` beside its name, where it can be looked into.
    ///
    /// # Errors
    /// [`StagingError::Io`].
    pub fn reject(self) -> Result<PathBuf, StagingError> {
        // In a folder that stays in place, as nothing else is sure to be on its file system.
        let named = match &self.kind {
            Kind::Folder { in_place: true, .. } => {
                self.target.join(self.real.file_name().unwrap_or_default())
            }
            _ => self.target.clone(),
        };
        let kept = self
            .settle()
            .and_then(|()| keep_rejected(&named, &self.folder));
        kept.map_err(failed(&self.target, "keeping the rejected output"))
    }

    /// Gives the staged files their permissions, and has the system write them out.
    fn settle(&self) -> io::Result<()> {
        match &self.kind {
            Kind::File => File::open(self.staged())?.sync_all(),
            Kind::Model(like) => {
                let like = fs::metadata(like);
                for entry in fs::read_dir(&self.folder)? {
                    let path = entry?.path();
                    let file = File::open(&path)?;
                    // A model is in memory even when its file is gone.
                    if let Ok(like) = &like {
                        follow(like, &path)?;
                    }
                    file.sync_all()?;
                }
                Ok(())
            }
            Kind::Folder { like, .. } => {
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
        // What has been published is here no more; what an exchange left here is the old output.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Whether nothing can be written there, whatever it is.
fn keeps_out(cause: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(cause.kind(), PermissionDenied | ReadOnlyFilesystem)
}

/// Whether a folder has to stay the same folder: others have it as their working folder, or a file system begins in it.
fn stays_in_place(folder: &Path) -> bool {
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
