//! Writes a model: the messages to `X.onnx`, large tensors to `X.onnx.data`, each complete before it takes its name.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use gqa2mla_passes::onnx::stored::{External, Role, TensorError, byte_size, visit_tensors};
use gqa2mla_passes::onnx::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
use prost::Message;
use tempfile::NamedTempFile;

use crate::files::copy::copy_range;
use crate::files::load::LoadedModel;
use crate::files::mapped::Source;

/// Inline tensors smaller than this stay inline, so that small models are one file and shapes stay readable.
pub const INLINE_BELOW: usize = 64 * 1024;
/// Offsets in the data file are multiples of this: the allocation granularity of Windows, and of pages elsewhere.
///
/// Small tensors are not treated apart: a model has a few hundred tensors and as many gaps, which is below 1% of its
/// weights, and file systems that know holes store no gap.
pub const ALIGNMENT: u64 = 64 * 1024;
/// protobuf refuses larger messages.
const LARGEST_MESSAGE: usize = i32::MAX as usize;

/// Why a model could not be written. Nothing is left under its name then.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The system refuses.
    #[error("{path}: {action}: {cause}")]
    Io {
        /// The file.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        cause: io::Error,
    },
    /// A tensor whose bytes are not there.
    #[error("{path}: {cause}")]
    Tensor {
        /// The output.
        path: String,
        /// What is wrong.
        cause: TensorError,
    },
    /// Too large without its weights.
    #[error(
        "{path}: the graph without its weights takes {bytes} bytes, and an ONNX file is limited to 2 GiB"
    )]
    TooLarge {
        /// The output.
        path: String,
        /// Length of the message.
        bytes: usize,
    },
}

/// Where a rewrite of `input` goes when the user asks for `out`: the path itself if it ends in `.onnx` and is no folder,
/// else the input's file name in the folder `out`.
pub fn output_path(input: &Path, out: &Path) -> PathBuf {
    match names_a_file(out) {
        true => out.to_path_buf(),
        false => out.join(input.file_name().unwrap_or_default()),
    }
}

/// Whether `out` is the path of a model, and not of a folder.
pub fn names_a_file(out: &Path) -> bool {
    out.extension().is_some_and(|e| e == "onnx")
        && !out.is_dir()
        && !out.to_string_lossy().ends_with('/')
}

/// Where the weights of a model go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DataFile {
    /// To `<model>.data`.
    #[default]
    Beside,
    /// To a file of this name beside the model.
    Named(String),
    /// Into the model itself.
    Inline,
}

impl DataFile {
    /// The name beside a model of this name.
    fn name(&self, model: &OsStr) -> OsString {
        match self {
            Self::Named(name) => name.into(),
            Self::Beside | Self::Inline => {
                let mut name = model.to_owned();
                name.push(".data");
                name
            }
        }
    }
}

/// Writes `loaded` to `path`, which ends in `.onnx`, and its weights to `<path>.data`.
///
/// # Errors
/// [`SaveError`].
pub fn save(loaded: &LoadedModel, path: &Path) -> Result<(), SaveError> {
    save_with(loaded, path, &DataFile::Beside)
}

/// Writes `loaded` to `path`, which ends in `.onnx`, and its weights to `data`.
///
/// Tensors that were external, and others of at least [`INLINE_BELOW`] bytes, go to the data file, in the order in which
/// the model holds them; parts of sparse tensors and tensors that contradict their own shape stay as they are. Ranges of
/// the input's files are copied by the file system, never through this process' memory.
pub fn save_with(loaded: &LoadedModel, path: &Path, data: &DataFile) -> Result<(), SaveError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let failed = |action: &'static str| {
        let path = path.display().to_string();
        move |cause| SaveError::Io {
            path,
            action,
            cause,
        }
    };
    if path.is_dir() {
        // Found out by the last rename, it would leave the data file behind.
        return Err(failed("writing")(io::ErrorKind::IsADirectory.into()));
    }
    let data_name = data.name(path.file_name().unwrap_or_default());
    let mut proto = loaded.model.proto.clone();
    let mut writer = DataWriter {
        loaded,
        folder: &folder,
        shown: path.display().to_string(),
        name: data_name.to_string_lossy().into_owned(),
        file: None,
        end: 0,
        opened: None,
        placed: HashMap::new(),
        inline: *data == DataFile::Inline,
    };
    visit_tensors(&mut proto, &mut |tensor, role| writer.place(tensor, role))?;
    let data = writer.finish()?;

    let length = proto.encoded_len();
    if length > LARGEST_MESSAGE {
        return Err(SaveError::TooLarge {
            path: path.display().to_string(),
            bytes: length,
        });
    }
    let mut file = temporary(&folder).map_err(failed("making a temporary file"))?;
    file.write_all(&proto.encode_to_vec())
        .map_err(failed("writing"))?;
    file.as_file().sync_all().map_err(failed("writing"))?;
    // Data first: a model under its name always has its weights.
    if let Some(data) = data {
        data.persist(folder.join(&data_name))
            .map_err(|e| failed("renaming the data file")(e.error))?;
    }
    file.persist(path)
        .map_err(|e| failed("renaming")(e.error))?;
    #[cfg(unix)]
    File::open(&folder)
        .and_then(|f| f.sync_all())
        .map_err(failed("writing the folder"))?;
    Ok(())
}

/// A file in `folder` that disappears unless it gets a name, to be read by whoever may read the folder.
///
/// # Errors
/// The system's.
pub fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".gqa2mla-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // A model is to be read by whoever may read the folder; the process' umask still applies.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

struct DataWriter<'a> {
    loaded: &'a LoadedModel,
    folder: &'a Path,
    shown: String,
    name: String,
    file: Option<NamedTempFile>,
    end: u64,
    /// The input file copied from last; a model can have more files than a process may open.
    opened: Option<(PathBuf, File)>,
    /// Ranges that are in the new file already: tensors that shared bytes go on sharing them.
    placed: HashMap<External, u64>,
    /// Whether there is to be no data file.
    inline: bool,
}

impl DataWriter<'_> {
    fn place(&mut self, tensor: &mut TensorProto, role: Role) -> Result<(), SaveError> {
        let broken = |cause| SaveError::Tensor {
            path: self.shown.clone(),
            cause,
        };
        if let Some(external) = External::of(tensor).map_err(broken)? {
            let range = self.loaded.model.range(tensor, &external).map_err(broken)?;
            if self.inline {
                tensor.external_data.clear();
                tensor.data_location = None;
                tensor.raw_data = Some(range);
                return Ok(());
            }
            let offset = match self.placed.get(&external) {
                Some(offset) => *offset,
                None => self.write(&range)?,
            };
            self.refer(tensor, offset, external.length);
            self.placed.insert(external, offset);
        } else if let (Role::Dense, false, Some(bytes)) = (role, self.inline, self.large(tensor)) {
            let offset = self.write(&bytes)?;
            tensor.raw_data = None;
            tensor.float_data.clear();
            tensor.int32_data.clear();
            tensor.int64_data.clear();
            tensor.double_data.clear();
            tensor.uint64_data.clear();
            self.refer(tensor, offset, bytes.len() as u64);
        }
        Ok(())
    }

    /// The bytes of an inline tensor that is better kept in the data file.
    fn large(&self, tensor: &TensorProto) -> Option<Bytes> {
        let size = byte_size(tensor).ok()?;
        if size < INLINE_BELOW as u64 {
            return None;
        }
        self.loaded.model.tensor_bytes(tensor).ok()
    }

    /// Puts `bytes` at the next aligned offset of the data file; returns that offset.
    fn write(&mut self, bytes: &Bytes) -> Result<u64, SaveError> {
        let offset = self.end.next_multiple_of(ALIGNMENT);
        let written = self.write_at(offset, bytes);
        written.map_err(self.io("writing the data file"))?;
        self.end = offset + bytes.len() as u64;
        Ok(offset)
    }

    fn write_at(&mut self, offset: u64, bytes: &Bytes) -> io::Result<()> {
        let original = [&self.loaded.source]
            .into_iter()
            .chain(self.loaded.sources.values())
            .find_map(|source| Some((source, source.offset_of(bytes)?)));
        let file = match &mut self.file {
            Some(file) => file,
            slot => slot.insert(temporary(self.folder)?),
        };
        let target = file.as_file_mut();
        target.seek(SeekFrom::Start(offset))?;
        match original {
            Some((source, from)) => match reopened(&mut self.opened, source) {
                Some(source) => copy_range(source, from, target, bytes.len() as u64),
                None => target.write_all(bytes),
            },
            None => target.write_all(bytes),
        }
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> SaveError + use<> {
        let path = self.shown.clone();
        move |cause| SaveError::Io {
            path,
            action,
            cause,
        }
    }

    fn refer(&self, tensor: &mut TensorProto, offset: u64, length: u64) {
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        // A checksum speaks of a file that is no longer meant; other keys are the exporter's.
        tensor
            .external_data
            .retain(|e| !matches!(e.key(), "location" | "offset" | "length" | "checksum"));
        let place = [
            entry("location", self.name.clone()),
            entry("offset", offset.to_string()),
            entry("length", length.to_string()),
        ];
        tensor.external_data.splice(0..0, place);
        tensor.data_location = Some(DataLocation::External as i32);
    }

    fn finish(self) -> Result<Option<NamedTempFile>, SaveError> {
        let error = self.io("writing the data file");
        if let Some(file) = &self.file {
            let written = file
                .as_file()
                .set_len(self.end)
                .and_then(|()| file.as_file().sync_all());
            written.map_err(error)?;
        }
        Ok(self.file)
    }
}

/// The file of `source`, opened unless it was the last one.
fn reopened<'a>(opened: &'a mut Option<(PathBuf, File)>, source: &Source) -> Option<&'a mut File> {
    if opened
        .as_ref()
        .is_none_or(|(path, _)| path != source.path())
    {
        *opened = source
            .open()
            .map(|file| (source.path().to_path_buf(), file));
    }
    opened.as_mut().map(|(_, file)| file)
}
