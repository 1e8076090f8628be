//! Writes a model: the messages to `X.onnx`, large tensors to `X.onnx.data`, each complete before it takes its name.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use gqa2mla_passes::model::{External, TensorError, visit_tensors};
use gqa2mla_passes::onnx::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
use prost::Message;
use tempfile::NamedTempFile;

use super::load::LoadedModel;

/// Inline tensors smaller than this stay inline, so that small models are one file and shapes stay readable.
pub const INLINE_BELOW: usize = 64 * 1024;
/// Offsets in the data file are multiples of this: the allocation granularity of Windows, and of pages elsewhere.
pub const ALIGNMENT: u64 = 64 * 1024;
/// protobuf refuses larger messages.
const LARGEST_MESSAGE: usize = i32::MAX as usize;
/// How much is copied at a time where the system cannot copy a range by itself.
const CHUNK: usize = 1 << 20;

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
    let names_a_file = out.extension().is_some_and(|e| e == "onnx")
        && !out.is_dir()
        && !out.to_string_lossy().ends_with('/');
    if names_a_file {
        return out.to_path_buf();
    }
    out.join(input.file_name().unwrap_or_default())
}

/// Writes `loaded` to `path`, which ends in `.onnx`.
///
/// Tensors that were external, and raw ones of at least [`INLINE_BELOW`] bytes, go to the data file, in the order in
/// which the model holds them. Ranges are copied by the file system, never through this process' memory.
pub fn save(loaded: &LoadedModel, path: &Path) -> Result<(), SaveError> {
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
    let mut data_name = path.file_name().map(OsString::from).unwrap_or_default();
    data_name.push(".data");
    let mut proto = loaded.model.proto.clone();
    let mut writer = DataWriter {
        loaded,
        folder: &folder,
        shown: path.display().to_string(),
        name: data_name.to_string_lossy().into_owned(),
        file: None,
        end: 0,
        opened: BTreeMap::new(),
        placed: HashMap::new(),
    };
    visit_tensors(&mut proto, &mut |tensor| writer.place(tensor))?;
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

fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
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
    opened: BTreeMap<String, File>,
    /// Ranges that are in the new file already: tensors that shared bytes go on sharing them.
    placed: HashMap<External, u64>,
}

impl DataWriter<'_> {
    fn place(&mut self, tensor: &mut TensorProto) -> Result<(), SaveError> {
        let broken = |cause| SaveError::Tensor {
            path: self.shown.clone(),
            cause,
        };
        if let Some(external) = External::of(tensor).map_err(broken)? {
            let (offset, length) = (self.copy(tensor, &external)?, external.length);
            self.refer(tensor, offset, length);
            return Ok(());
        }
        if tensor
            .raw_data
            .as_ref()
            .is_none_or(|raw| raw.len() < INLINE_BELOW)
        {
            return Ok(());
        }
        let bytes = tensor.raw_data.take().unwrap_or_default();
        let offset = self.aligned()?;
        let written = self.data()?.write_all(&bytes);
        written.map_err(self.io("writing the data file"))?;
        self.end = offset + bytes.len() as u64;
        self.refer(tensor, offset, bytes.len() as u64);
        Ok(())
    }

    /// Puts the range of a source file into the new one; returns where.
    fn copy(&mut self, tensor: &TensorProto, external: &External) -> Result<u64, SaveError> {
        if let Some(offset) = self.placed.get(external) {
            return Ok(*offset);
        }
        let offset = self.aligned()?;
        if !self.opened.contains_key(&external.location) {
            let source =
                self.loaded
                    .sources
                    .get(&external.location)
                    .ok_or_else(|| SaveError::Tensor {
                        path: self.shown.clone(),
                        cause: TensorError::NoFile {
                            tensor: tensor.name().to_owned(),
                            location: external.location.clone(),
                        },
                    })?;
            let file = File::open(source).map_err(self.io("reading the original's data file"))?;
            self.opened.insert(external.location.clone(), file);
        }
        self.data()?;
        let copied = match (self.opened.get_mut(&external.location), self.file.as_mut()) {
            (Some(source), Some(target)) => copy_range(
                source,
                external.offset,
                target.as_file_mut(),
                external.length,
            ),
            _ => Ok(()),
        };
        copied.map_err(self.io("copying weights"))?;
        self.end = offset + external.length;
        self.placed.insert(external.clone(), offset);
        Ok(offset)
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> SaveError + use<> {
        let path = self.shown.clone();
        move |cause| SaveError::Io {
            path,
            action,
            cause,
        }
    }

    fn data(&mut self) -> Result<&mut NamedTempFile, SaveError> {
        let error = self.io("making a temporary file");
        match &mut self.file {
            Some(file) => Ok(file),
            slot => Ok(slot.insert(temporary(self.folder).map_err(error)?)),
        }
    }

    /// Moves to the next aligned offset.
    fn aligned(&mut self) -> Result<u64, SaveError> {
        let offset = self.end.next_multiple_of(ALIGNMENT);
        let moved = self.data()?.seek(SeekFrom::Start(offset));
        moved.map_err(self.io("writing the data file"))
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

/// Copies `length` bytes from `offset` of `source` to the position of `target`.
fn copy_range(source: &mut File, offset: u64, target: &mut File, length: u64) -> io::Result<()> {
    let copied = copy_in_kernel(source, offset, target, length)?;
    if copied == length {
        return Ok(());
    }
    source.seek(SeekFrom::Start(offset + copied))?;
    let mut rest = source.take(length - copied);
    let mut buffer = vec![0; CHUNK];
    let mut missing = length - copied;
    while missing > 0 {
        let read = rest.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
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
            Ok(_) => {}
            Err(Errno::INTR) => {}
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
