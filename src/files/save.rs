//! Writing of models: the graph to `X.onnx`, large tensors to a data file beside it whose name contains a checksum,
//! such as `X.onnx.1f0a39c2.data`, so that an old model is never combined with new weights.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use gqa2mla_passes::onnx::ModelProto;
use gqa2mla_passes::onnx::stored::visit_tensors;
use gqa2mla_passes::onnx::tensor_proto::DataLocation;
use prost::Message;

use crate::files::data::{DataWriter, content, numbered};
use crate::files::load::LoadedModel;
use crate::files::origin::data_name;
use crate::files::staging::Staging;

pub use crate::files::data::{ALIGNMENT, INLINE_BELOW, LARGE, PACKING, SaveError};

/// Name of the data file while it is being written.
const UNNAMED: &str = "data";
/// Largest message of protobuf, in bytes.
const LARGEST_MESSAGE: usize = i32::MAX as usize;

/// The output path of a rewrite of `input`: `out` itself if it ends in `.onnx` and is not a folder, else the input's
/// file name in the folder `out`.
pub fn output_path(input: &Path, out: &Path) -> PathBuf {
    match names_a_file(out) {
        true => out.to_path_buf(),
        false => out.join(input.file_name().unwrap_or_default()),
    }
}

/// Whether `out` is the path of a model file, not of a folder.
pub fn names_a_file(out: &Path) -> bool {
    out.extension().is_some_and(|e| e == "onnx")
        && !out.is_dir()
        && !out.to_string_lossy().ends_with('/')
}

/// The data file of a model's weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DataFile {
    /// A file beside the model, named after the model and a checksum of the data.
    #[default]
    Beside,
    /// A file of this name beside the model, for folders that are published as a whole.
    Named(String),
    /// Files of at most `largest` bytes beside the model, the first of this name, the others `name_1`, `name_2` and so on.
    Chunks {
        /// The name of the first.
        name: String,
        /// Bytes of a file at most, unless one tensor has more.
        largest: u64,
    },
    /// No data file: all weights are inline.
    Inline,
}

/// Writes `loaded` to `path`, which ends in `.onnx` and whose folder exists, and its weights to a data file beside it.
///
/// # Errors
/// [`SaveError`].
pub fn save(loaded: &LoadedModel, path: &Path) -> Result<(), SaveError> {
    let failed = |cause| SaveError::Io {
        path: path.display().to_string(),
        action: "writing",
        cause,
    };
    let folder = crate::files::publish::parent(path);
    fs::metadata(folder).map_err(failed)?;
    let staging = Staging::model(path, &loaded.path)?;
    write(loaded, &staging, &DataFile::Beside)?;
    staging.publish()?;
    Ok(())
}

/// Writes `loaded` into the staging folder, with its weights in `data`.
///
/// External tensors, and inline ones of at least [`INLINE_BELOW`] bytes, are written to the data file in the order of
/// the model. Parts of sparse tensors, and inline tensors whose size contradicts their shape, are not moved. Ranges of
/// the input's files are copied by the kernel where possible.
///
/// # Errors
/// [`SaveError`].
pub fn write(loaded: &LoadedModel, staging: &Staging, data: &DataFile) -> Result<(), SaveError> {
    let shown = staging.target().display().to_string();
    let failed = |action: &'static str| {
        let path = shown.clone();
        move |cause| SaveError::Io {
            path,
            action,
            cause,
        }
    };
    let name = staging.target().file_name().unwrap_or_default();
    let name = name.to_string_lossy();
    // The final name depends on the content.
    let unnamed = staging.path(Path::new(UNNAMED));
    let mut proto = loaded.model.proto.clone();
    let largest = match data {
        DataFile::Chunks { largest, .. } => *largest,
        _ => u64::MAX,
    };
    let inline = *data == DataFile::Inline;
    let mut writer = DataWriter::new(loaded, &unnamed, &shown, inline, largest);
    visit_tensors(&mut proto, &mut |tensor, role| writer.place(tensor, role))?;
    let files = writer.finish()?;
    if files > 0 {
        let first = match data {
            DataFile::Named(name) | DataFile::Chunks { name, .. } => name.clone(),
            DataFile::Beside | DataFile::Inline => {
                let content = flushed_content(&unnamed).map_err(failed("reading the data file"))?;
                data_name(&name, content)
            }
        };
        for number in 0..files {
            let named = staging.path(&numbered(Path::new(&first), number));
            let renamed = fs::rename(numbered(&unnamed, number), named);
            renamed.map_err(failed("naming the data file"))?;
        }
        locate(&mut proto, &first);
    }
    loaded.check().map_err(failed("reading the input"))?;
    let length = proto.encoded_len();
    if length > LARGEST_MESSAGE {
        return Err(SaveError::TooLarge {
            path: shown,
            bytes: length,
        });
    }
    fs::write(staging.staged(), proto.encode_to_vec()).map_err(failed("writing"))
}

/// The checksum of the file at `path`, which is flushed to disk meanwhile.
fn flushed_content(path: &Path) -> io::Result<u32> {
    std::thread::scope(|scope| {
        let flushed = scope.spawn(|| fs::File::open(path)?.sync_data());
        let content = content(path)?;
        flushed.join().unwrap_or(Ok(()))?;
        Ok(content)
    })
}

/// Sets the location of every external tensor, the number of its data file, to the name of that file.
fn locate(proto: &mut ModelProto, first: &str) {
    let Ok(()) = visit_tensors(proto, &mut |tensor, _| {
        if tensor.data_location() == DataLocation::External {
            let mut entries = tensor.external_data.iter_mut();
            if let Some(entry) = entries.find(|e| e.key() == "location") {
                let number = entry.value().parse().unwrap_or(0);
                let name = numbered(Path::new(first), number);
                entry.value = Some(name.display().to_string());
            }
        }
        Ok::<(), std::convert::Infallible>(())
    });
}
