//! Export and import of a rewritten model's factors as a safetensors file, for training with other tools.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use gqa2mla_passes::onnx::{TensorProto, tensor_proto::DataType};
use gqa2mla_train::stored;
use safetensors::tensor::{Dtype, SafeTensors, View, serialize};

use crate::files::load::LoadedModel;
use crate::files::outputs::FACTORS;
use crate::files::staging::Staging;
use crate::tune::TuneError;
use crate::tune::select::is_factor;

/// A factor to be written to the file.
struct Factor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl View for Factor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn dtype(tensor: &TensorProto) -> Option<Dtype> {
    match DataType::try_from(tensor.data_type()) {
        Ok(DataType::Float) => Some(Dtype::F32),
        Ok(DataType::Float16) => Some(Dtype::F16),
        Ok(DataType::Bfloat16) => Some(Dtype::BF16),
        _ => None,
    }
}

fn shape(tensor: &TensorProto) -> Vec<usize> {
    tensor.dims.iter().map(|&d| d.max(0) as usize).collect()
}

/// Writes the factors of `model` to `path`, each with the name, type and shape of its initializer. Returns their
/// number.
///
/// # Errors
/// [`TuneError::Nothing`] for a model without factors; [`TuneError::Staging`].
pub fn export(model: &LoadedModel, path: &Path) -> Result<usize, TuneError> {
    let mut factors = BTreeMap::new();
    let graph = model.model.proto.graph.as_ref();
    let tensors = graph.iter().flat_map(|g| &g.initializer);
    for tensor in tensors.filter(|t| is_factor(t.name())) {
        if let Some(dtype) = dtype(tensor) {
            let bytes = model.model.tensor_bytes(tensor)?;
            let factor = Factor {
                dtype,
                shape: shape(tensor),
                bytes,
            };
            factors.insert(tensor.name().to_owned(), factor);
        }
    }
    let count = factors.len();
    if count == 0 {
        return Err(without_factors(model));
    }
    let encoded = serialize(
        factors,
        Some(HashMap::from([("format".to_owned(), FACTORS.to_owned())])),
    )
    .map_err(|e| TuneError::Io {
        path: path.display().to_string(),
        cause: io::Error::other(e.to_string()),
    })?;
    let staging = Staging::file(path)?;
    staging.write(Path::new(path.file_name().unwrap_or_default()), &encoded)?;
    staging.publish()?;
    Ok(count)
}

/// Replaces the factors of `model` by those of the file at `path`, which must have the same names and shapes. Values
/// are rounded to the model's type. Returns their number.
///
/// # Errors
/// [`TuneError::Factors`] if a factor is missing, unknown, of another shape or not finite. `model` is unchanged then.
pub fn import(model: &mut LoadedModel, path: &Path) -> Result<usize, TuneError> {
    let shown = path.display().to_string();
    let bytes = fs::read(path).map_err(|cause| TuneError::Io {
        path: shown.clone(),
        cause,
    })?;
    let wrong = |detail: String| TuneError::Factors {
        path: shown.clone(),
        detail,
    };
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| wrong(format!("not a safetensors file: {e}")))?;
    let mut graph = model.model.proto.graph.clone().unwrap_or_default();
    let mut known = 0;
    for tensor in graph.initializer.iter_mut().filter(|t| is_factor(t.name())) {
        let name = tensor.name().to_owned();
        let given = file
            .tensor(&name)
            .map_err(|_| wrong(format!("it has no '{name}', which the model has")))?;
        if given.shape() != shape(tensor) {
            return Err(wrong(format!(
                "'{name}' has shape {:?}, in the model {:?}",
                given.shape(),
                tensor.dims
            )));
        }
        let values = floats(given.dtype(), given.data())
            .ok_or_else(|| wrong(format!("'{name}' is neither F32 nor F16 nor BF16")))?;
        if values.iter().any(|v| !v.is_finite()) {
            return Err(wrong(format!("'{name}' holds a number that is not finite")));
        }
        stored::write(tensor, &values).map_err(|_| {
            wrong(format!(
                "'{name}' holds a number beyond the range of the model's fp16"
            ))
        })?;
        known += 1;
    }
    if known == 0 {
        return Err(without_factors(model));
    }
    if let Some(name) = file.names().into_iter().find(|name| !is_factor(name)) {
        return Err(wrong(format!("it has '{name}', which is no factor")));
    }
    if file.len() != known {
        return Err(wrong(format!(
            "it has {} tensors, and the model {known} factors",
            file.len()
        )));
    }
    model.model.proto.graph = Some(graph);
    Ok(known)
}

fn without_factors(model: &LoadedModel) -> TuneError {
    TuneError::Nothing {
        path: model.path.display().to_string(),
        detail: "it holds no factors of a rewrite: give a model that `rewrite` has written"
            .to_owned(),
    }
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.chunks_exact(2).filter_map(|b| b.try_into().ok());
    Some(match dtype {
        Dtype::F32 => bytes
            .chunks_exact(4)
            .filter_map(|b| b.try_into().ok().map(f32::from_le_bytes))
            .collect(),
        Dtype::F16 => pairs()
            .map(|b| half::f16::from_le_bytes(b).to_f32())
            .collect(),
        Dtype::BF16 => pairs()
            .map(|b| half::bf16::from_le_bytes(b).to_f32())
            .collect(),
        _ => return None,
    })
}
