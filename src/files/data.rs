//! Writer of a model's data file: the bytes of its large tensors, one after another.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use gqa2mla_passes::onnx::stored::{
    External, TensorError, TensorStorage, byte_size, visit_tensors,
};
use gqa2mla_passes::onnx::{
    ModelProto, StringStringEntryProto, TensorProto, tensor_proto::DataLocation,
};

use crate::files::copy::{copy_range, next_data};
use crate::files::load::LoadedModel;
use crate::files::mapped::Source;
use crate::files::staging::StagingError;

/// Inline tensors smaller than this, in bytes, stay inline, so that small models are a single file.
pub const INLINE_BELOW: usize = 64 * 1024;
/// Tensors of at least [`LARGE`] bytes start at multiples of this, so that runtimes can map them. It is the allocation
/// granularity of Windows and a multiple of the page size of other systems.
pub const ALIGNMENT: u64 = 64 * 1024;
/// Smaller tensors start at multiples of this, the size of a cache line.
pub const PACKING: u64 = 64;
/// Smallest size in bytes of tensors that are aligned to [`ALIGNMENT`]: the gap before them is at most 1/16 of their
/// size. For the hundreds of small tensors of a quantized model, gaps would be many times their size.
pub const LARGE: u64 = 1024 * 1024;

/// Whether `model` is written with a data file: it has an external tensor, or a large one.
pub fn has_data(model: &mut ModelProto) -> bool {
    let mut found = false;
    let Ok(()) = visit_tensors(model, &mut |tensor, role| {
        let large = byte_size(tensor).is_ok_and(|size| size >= INLINE_BELOW as u64);
        let external = tensor.data_location() == DataLocation::External;
        found |= external || (large && role == TensorStorage::Dense);
        Ok::<(), std::convert::Infallible>(())
    });
    found
}

/// Why a model could not be written. Nothing is written to its path then.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A file cannot be written.
    #[error("{path}: {action}: {cause}")]
    Io {
        /// The file.
        path: String,
        /// The failed action.
        action: &'static str,
        /// The I/O error.
        cause: io::Error,
    },
    /// The staging folder could not be made, or the output not be published.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The bytes of a tensor cannot be read.
    #[error("{path}: {cause}")]
    Tensor {
        /// The output.
        path: String,
        /// The reason.
        cause: TensorError,
    },
    /// The model is too large even without its weights.
    #[error(
        "{path}: the graph without its weights takes {bytes} bytes, and an ONNX file is limited to 2 GiB"
    )]
    TooLarge {
        /// The output.
        path: String,
        /// Length of the protobuf message.
        bytes: usize,
    },
}

/// Writes tensors to data files; the first is created with the first tensor.
pub struct DataWriter<'a> {
    loaded: &'a LoadedModel,
    path: &'a Path,
    shown: &'a str,
    file: Option<File>,
    end: u64,
    /// Largest size of a data file in bytes; a tensor that would exceed it starts a new file.
    largest: u64,
    /// Number of completed files.
    full: usize,
    /// The input file that was copied from last. Only one is kept open, because a model can have more files than a
    /// process may open.
    opened: Option<(PathBuf, File)>,
    /// Where ranges have been written, so that tensors with shared bytes still share them.
    placed: HashMap<External, Placed>,
    /// Whether all tensors are to be inline.
    inline: bool,
}

/// The location of a tensor: the number of its data file, and its offset there.
type Placed = (usize, u64);

/// The path of data file `number`: `first`, `first_1`, `first_2` and so on.
pub fn numbered(first: &Path, number: usize) -> PathBuf {
    let mut path = first.as_os_str().to_owned();
    if number > 0 {
        path.push(format!("_{number}"));
    }
    path.into()
}

impl<'a> DataWriter<'a> {
    /// A writer of tensors of `loaded` to the file `path`, or into the messages if `inline`. A file has at most
    /// `largest` bytes, unless a single tensor is larger; further files are named by [`numbered`]. Errors name the path
    /// `shown`.
    pub fn new(
        loaded: &'a LoadedModel,
        path: &'a Path,
        shown: &'a str,
        inline: bool,
        largest: u64,
    ) -> Self {
        Self {
            loaded,
            path,
            shown,
            file: None,
            end: 0,
            largest,
            full: 0,
            opened: None,
            placed: HashMap::new(),
            inline,
        }
    }

    /// Writes the bytes of `tensor`, if it is external or large, and sets its offset and length. Its `location` is the
    /// number of the data file; the caller replaces it by the name when the name is known.
    pub fn place(
        &mut self,
        tensor: &mut TensorProto,
        role: TensorStorage,
    ) -> Result<(), SaveError> {
        let broken = |cause| SaveError::Tensor {
            path: self.shown.to_owned(),
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
            let placed = match self.placed.get(&external) {
                Some(placed) => *placed,
                None => self.write(&range)?,
            };
            Self::refer(tensor, placed, external.length);
            self.placed.insert(external, placed);
        } else if let (TensorStorage::Dense, false, Some(bytes)) =
            (role, self.inline, self.large(tensor))
        {
            let placed = self.write(&bytes)?;
            tensor.raw_data = None;
            tensor.float_data.clear();
            tensor.int32_data.clear();
            tensor.int64_data.clear();
            tensor.double_data.clear();
            tensor.uint64_data.clear();
            Self::refer(tensor, placed, bytes.len() as u64);
        }
        Ok(())
    }

    /// The bytes of an inline tensor that is large enough for the data file.
    fn large(&self, tensor: &TensorProto) -> Option<Bytes> {
        let size = byte_size(tensor).ok()?;
        if size < INLINE_BELOW as u64 {
            return None;
        }
        self.loaded.model.tensor_bytes(tensor).ok()
    }

    /// Writes `bytes` at the next aligned offset of the data file, or at the start of a new file if that one is full.
    fn write(&mut self, bytes: &Bytes) -> Result<Placed, SaveError> {
        let alignment = match bytes.len() as u64 >= LARGE {
            true => ALIGNMENT,
            false => PACKING,
        };
        let mut offset = self.end.next_multiple_of(alignment);
        if self.file.is_some() && offset.saturating_add(bytes.len() as u64) > self.largest {
            self.close()?;
            self.full += 1;
            (self.end, offset) = (0, 0);
        }
        let written = self.write_at(offset, bytes);
        written.map_err(self.io("writing the data file"))?;
        self.end = offset + bytes.len() as u64;
        Ok((self.full, offset))
    }

    fn write_at(&mut self, offset: u64, bytes: &Bytes) -> io::Result<()> {
        let original = [&self.loaded.source]
            .into_iter()
            .chain(self.loaded.sources.values())
            .find_map(|source| Some((source, source.offset_of(bytes)?)));
        let target = match &mut self.file {
            Some(file) => file,
            slot => slot.insert(File::create_new(numbered(self.path, self.full))?),
        };
        target.seek(SeekFrom::Start(offset))?;
        let Some((source, from)) = original else {
            return target.write_all(bytes);
        };
        let Some(opened) = reopened(&mut self.opened, source)? else {
            return target.write_all(bytes);
        };
        let copied = copy_range(opened, from, target, bytes.len() as u64);
        copied.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => source.truncated(),
            _ => error,
        })
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> SaveError + use<> {
        let path = self.shown.to_owned();
        move |cause| SaveError::Io {
            path,
            action,
            cause,
        }
    }

    fn refer(tensor: &mut TensorProto, (file, offset): Placed, length: u64) {
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        // The old checksum is that of another file; other keys of the exporter are kept.
        tensor
            .external_data
            .retain(|e| !matches!(e.key(), "location" | "offset" | "length" | "checksum"));
        let place = [
            entry("location", file.to_string()),
            entry("offset", offset.to_string()),
            entry("length", length.to_string()),
        ];
        tensor.external_data.splice(0..0, place);
        tensor.data_location = Some(DataLocation::External as i32);
    }

    /// Finishes the last file; returns how many there are.
    pub fn finish(mut self) -> Result<usize, SaveError> {
        let begun = usize::from(self.file.is_some());
        self.close()?;
        Ok(self.full + begun)
    }

    fn close(&mut self) -> Result<(), SaveError> {
        let error = self.io("writing the data file");
        match self.file.take() {
            // A hole at the end has not been written.
            Some(file) => file.set_len(self.end).map_err(error),
            None => Ok(()),
        }
    }
}

/// The opened file of `source`; `None` if the path now belongs to another file.
fn reopened<'a>(
    opened: &'a mut Option<(PathBuf, File)>,
    source: &Source,
) -> io::Result<Option<&'a mut File>> {
    if opened
        .as_ref()
        .is_none_or(|(path, _)| path != source.path())
    {
        *opened = source
            .open()?
            .map(|file| (source.path().to_path_buf(), file));
    }
    Ok(opened.as_mut().map(|(_, file)| file))
}

/// A checksum (CRC-32) of the file at `path`: of its length, and of offset and bytes of each block of size
/// [`ALIGNMENT`] that is not all zeros. Holes are not read.
///
/// # Errors
/// I/O errors.
pub fn content(path: &Path) -> io::Result<u32> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut sum = crc32fast::Hasher::new();
    sum.update(&length.to_le_bytes());
    let mut block = Vec::new();
    let mut at = 0;
    while let Some((from, to)) = next_data(&file, at, length)? {
        at = from / ALIGNMENT * ALIGNMENT;
        while at < to {
            block.clear();
            file.seek(SeekFrom::Start(at))?;
            (&mut file).take(ALIGNMENT).read_to_end(&mut block)?;
            if block.iter().any(|byte| *byte != 0) {
                sum.update(&at.to_le_bytes());
                sum.update(&block);
            }
            at += ALIGNMENT;
        }
    }
    Ok(sum.finalize())
}
