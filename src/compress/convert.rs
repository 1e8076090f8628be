//! One rewrite into a staging folder, from which the output is published.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use gqa2mla_passes::onnx::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
use gqa2mla_passes::pipeline::factorize::Factorize;
use gqa2mla_passes::pipeline::patches::Callbacks;
use gqa2mla_passes::pipeline::rewrite_analysed;
use gqa2mla_passes::{Analysis, RewriteError, RewriteOptions, Rewritten};

#[cfg(feature = "train")]
use crate::files::load::load;
use crate::files::load::{LoadError, LoadedModel};
use crate::files::origin::{REWRITTEN, is_rewritten, mark};
use crate::files::outputs::{OutputError, check_inputs};
use crate::files::save::{DataFile, SaveError, output_path, write};
use crate::files::staging::{Staging, StagingError};

/// New tensors of at least this many bytes are stored in a temporary file, so that the factors of one layer are freed
/// before those of the next are computed.
const SPILL_FROM: usize = 4096;
/// Name of that file among the model's data files; no exporter uses such a name.
const SPILL: &str = ".gqa2mla-new-weights";

/// Why a model was not converted. Nothing is written to the output path.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The input could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The rewrite was refused or failed.
    #[error("{path}: {cause}")]
    Rewrite {
        /// The input.
        path: String,
        /// The error of the rewrite.
        cause: Box<RewriteError>,
    },
    /// Nothing is left to rewrite, because this tool has rewritten it.
    #[error("{0}: {REWRITTEN}")]
    Rewritten(String),
    /// The output could not be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The output path is that of an input.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The staging folder could not be made, or the output not be published.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The temporary file of new weights could not be written.
    #[error("{path}: keeping the new weights: {cause}")]
    Spill {
        /// The output.
        path: String,
        /// The I/O error.
        cause: std::io::Error,
    },
}

impl ConvertError {
    /// The error of a rewrite of `model`.
    pub fn of(model: &LoadedModel, cause: RewriteError) -> Self {
        let path = model.path.display().to_string();
        match cause {
            RewriteError::Nothing(_) if is_rewritten(&model.model.proto) => Self::Rewritten(path),
            cause => Self::Rewrite {
                path,
                cause: Box::new(cause),
            },
        }
    }
}

/// A rewritten model in a staging folder; it is removed when dropped.
pub struct Staged {
    staging: Staging,
    /// The result of the rewrite.
    pub rewritten: Rewritten,
    /// The loaded input with the rewritten graph.
    pub model: LoadedModel,
}

/// Returns the metadata entry that describes a rewrite, if there should be one.
pub type Note<'n> = dyn FnMut(&Rewritten) -> Option<StringStringEntryProto> + 'n;

/// Rewrites `original`, whose analysis is `analysis`, into a staging folder for `out`, with weights in `data`. The
/// entry of `note` is added to the model's metadata. `progress` is called after each attention with (done, total).
///
/// # Errors
/// [`ConvertError`].
pub fn stage(
    (original, analysis): (&LoadedModel, &Analysis),
    (out, data): (&Path, &DataFile),
    options: &RewriteOptions,
    factorize: &mut Factorize,
    note: &mut Note,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Staged, ConvertError> {
    // Weights are shared; only the protobuf messages are copied.
    let mut model = original.clone();
    let target = output_path(&model.path, out);
    check_inputs(&model, &target)?;
    let staging = Staging::model(&target, &model.path)?;
    let failed = |cause| ConvertError::Spill {
        path: staging.target().display().to_string(),
        cause,
    };
    let spill_path = staging.path(Path::new(SPILL));
    let mut spill = fs::File::create_new(&spill_path).map_err(failed)?;
    let mut length = 0u64;
    let mut store =
        |tensor: TensorProto| -> Result<TensorProto, Box<dyn std::error::Error + Send + Sync>> {
            let Some(bytes) = spilled(&tensor).cloned() else {
                return Ok(tensor);
            };
            spill.write_all(&bytes)?;
            let stored = external(tensor, length, bytes.len() as u64);
            length += bytes.len() as u64;
            Ok(stored)
        };
    // Release pages that the analysis has read around small tensors, and the weights of finished layers.
    original.let_go();
    let mut progress = |done, total| {
        original.let_go();
        progress(done, total);
    };
    let callbacks = Callbacks {
        factorize,
        store: &mut store,
        progress: &mut progress,
    };
    let rewritten = rewrite_analysed(&mut model.model, analysis.clone(), options, callbacks);
    let rewritten = rewritten.map_err(|cause| ConvertError::of(&model, cause))?;
    if let Some(note) = note(&rewritten) {
        let properties = &mut model.model.proto.metadata_props;
        properties.retain(|p| p.key() != note.key());
        properties.push(note);
    }
    mark(&mut model.model.proto);
    drop(spill);
    if length > 0 {
        model.add_file(SPILL, &spill_path)?;
    }
    write(&model, &staging, data)?;
    fs::remove_file(&spill_path).map_err(failed)?;
    Ok(Staged {
        staging,
        rewritten,
        model,
    })
}

/// The bytes of a new tensor, if they are many enough for the temporary file.
fn spilled(tensor: &TensorProto) -> Option<&Bytes> {
    tensor.raw_data.as_ref().filter(|b| b.len() >= SPILL_FROM)
}

/// A new tensor of a model that is not to be written: large ones refer to bytes that are nowhere.
pub(super) fn unwritten(tensor: TensorProto) -> TensorProto {
    match spilled(&tensor).map(Bytes::len) {
        Some(length) => external(tensor, 0, length as u64),
        None => tensor,
    }
}

fn external(mut tensor: TensorProto, offset: u64, length: u64) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    tensor.raw_data = None;
    tensor.data_location = Some(DataLocation::External as i32);
    tensor.external_data = vec![
        entry("location", SPILL.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", length.to_string()),
    ];
    tensor
}

impl Staged {
    /// The path of the staged model.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.staging.staged()
    }

    /// Replaces the staged files by those of `model`, which was loaded from them, with other weights.
    ///
    /// # Errors
    /// [`ConvertError::Save`].
    #[cfg(feature = "train")]
    pub(super) fn replace(
        &mut self,
        model: &LoadedModel,
        data: &DataFile,
    ) -> Result<(), ConvertError> {
        write(model, &self.staging, data)?;
        let used = load(&self.path())?.sources;
        for old in model
            .sources
            .keys()
            .filter(|name| !used.contains_key(*name))
        {
            // A file that stays is published with the model; it costs space only.
            let _ = fs::remove_file(self.staging.path(Path::new(old)));
        }
        Ok(())
    }

    /// Moves the model to its output path, which is returned.
    ///
    /// # Errors
    /// [`ConvertError::Staging`].
    pub fn publish(self) -> Result<PathBuf, ConvertError> {
        Ok(self.staging.publish()?)
    }

    /// Moves a model that failed validation to the folder `<name>.rejected` beside its output path, for inspection.
    ///
    /// # Errors
    /// [`ConvertError::Staging`].
    pub fn reject(self) -> Result<PathBuf, ConvertError> {
        Ok(self.staging.reject()?)
    }
}
