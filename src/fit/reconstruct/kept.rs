//! Files of finished layers, from which an interrupted run resumes.

use std::path::{Path, PathBuf};

use gqa2mla_passes::factor::Factors;
use gqa2mla_passes::factor::weighted::SideFactors;

use crate::files::tensors::{Arrays, ArraysError};

/// Kind and version of the file.
const KIND: &str = "gqa2mla factors 2";

/// The file of the layer at position `number` in `folder`.
#[must_use]
pub fn layer_file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("layer-{number}.safetensors"))
}

/// Writes the factors of a finished layer, with the errors before and after if it was reconstructed.
///
/// # Errors
/// [`ArraysError`].
pub fn save(factors: &Factors, error: Option<[f64; 2]>, path: &Path) -> Result<(), ArraysError> {
    let mut file = Arrays::default();
    for (name, side) in [("key", &factors.key), ("value", &factors.value)] {
        file.put(&format!("{name}/down"), &side.down.view());
        file.put(&format!("{name}/up"), &side.up.view());
        file.put(&format!("{name}/spectrum"), &side.spectrum.view());
    }
    if let Some(bias) = &factors.bias {
        file.put("bias", &bias.view());
    }
    if let Some(error) = error {
        file.put("error", &ndarray::arr1(&error).view());
    }
    file.save(KIND, path)
}

/// Reads the factors of a layer, with the errors before and after; `None` if there is no file.
///
/// # Errors
/// [`ArraysError`] if it is not such a file.
#[allow(clippy::type_complexity)]
pub fn load(path: &Path) -> Result<Option<(Factors, Option<[f64; 2]>)>, ArraysError> {
    if !path.exists() {
        return Ok(None);
    }
    let file = Arrays::load(KIND, path)?;
    let side = |name: &str| {
        Ok::<_, String>(SideFactors {
            down: file.get(&format!("{name}/down"))?,
            up: file.get(&format!("{name}/up"))?,
            spectrum: file.get(&format!("{name}/spectrum"))?,
        })
    };
    let factors = || {
        Ok::<_, String>(Factors {
            key: side("key")?,
            value: side("value")?,
            bias: file.get("bias").ok(),
        })
    };
    let error = file
        .get::<ndarray::Ix1>("error")
        .ok()
        .and_then(|e| e.to_vec().try_into().ok());
    let factors = factors().map_err(|detail| ArraysError::Format {
        path: path.display().to_string(),
        kind: KIND,
        detail,
    })?;
    Ok(Some((factors, error)))
}
