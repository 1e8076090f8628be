//! One rewrite into a staging, from which the output takes its name.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use gqa2mla_passes::onnx::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
use gqa2mla_passes::pipeline::factorize::Factorize;
use gqa2mla_passes::pipeline::patches::Callbacks;
use gqa2mla_passes::pipeline::rewrite_analysed;
use gqa2mla_passes::{Analysis, RewriteError, RewriteOptions, Rewritten};

use crate::files::load::{LoadError, LoadedModel};
use crate::files::origin::mark;
use crate::files::outputs::{OutputError, check_inputs};
use crate::files::save::{DataFile, SaveError, output_path, write};
use crate::files::staging::{Staging, StagingError};

/// New tensors of at least this many bytes wait in a file, so that one layer's factors leave memory before the next.
const SPILL_FROM: usize = 4096;
/// Name of that file among the model's data files; no exporter writes such a name.
const SPILL: &str = ".gqa2mla-new-weights";

/// Why a model was not converted. Nothing is left under the output's name.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The input could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The rewrite refused or failed.
    #[error("{path}: {cause}")]
    Rewrite {
        /// The input.
        path: String,
        /// Why.
        cause: Box<RewriteError>,
    },
    /// The output could not be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The output is an input.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The output has no staging folder, or did not get its name.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The new weights could not be kept.
    #[error("{path}: keeping the new weights: {cause}")]
    Spill {
        /// The output.
        path: String,
        /// The system's answer.
        cause: std::io::Error,
    },
}

/// A rewritten model that has not got its name yet; dropped, it disappears.
pub struct Staged {
    staging: Staging,
    /// What was done.
    pub rewritten: Rewritten,
    /// The input as it was loaded, with the rewritten messages.
    pub model: LoadedModel,
}

/// What the model's metadata are to say of what was done, if anything.
pub type Note<'n> = dyn FnMut(&Rewritten) -> Option<StringStringEntryProto> + 'n;

/// Rewrites `original`, whose analysis is `analysis`, into a staging of `out`, its weights into `data`. `note` goes into the model's metadata; `progress` is
/// called with the number of attentions done and of all.
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
    // The weights are shared; only the messages are copied.
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
            let bytes = match &tensor.raw_data {
                Some(bytes) if bytes.len() >= SPILL_FROM => bytes.clone(),
                _ => return Ok(tensor),
            };
            spill.write_all(&bytes)?;
            let stored = external(tensor, length, bytes.len() as u64);
            length += bytes.len() as u64;
            Ok(stored)
        };
    // The small tensors that the analysis has read brought their neighbours along; and the weights behind one layer are not
    // needed for the next.
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
    let rewritten = rewritten.map_err(|cause| ConvertError::Rewrite {
        path: model.path.display().to_string(),
        cause: Box::new(cause),
    })?;
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
    /// Where the model is now.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.staging.staged()
    }

    /// Gives the model its name.
    ///
    /// # Errors
    /// [`ConvertError::Staging`].
    pub fn publish(self) -> Result<PathBuf, ConvertError> {
        Ok(self.staging.publish()?)
    }

    /// Keeps a model that failed validation in a folder `<name>.rejected` beside its name, where it can be looked into.
    ///
    /// # Errors
    /// [`ConvertError::Staging`].
    pub fn reject(self) -> Result<PathBuf, ConvertError> {
        Ok(self.staging.reject()?)
    }
}
