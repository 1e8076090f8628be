//! Files of fp64 arrays and text entries in the safetensors format, written atomically.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use ndarray::{ArrayD, ArrayView, Dimension, IxDyn};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use crate::files::staging::{Staging, StagingError};

/// Arrays by name, and text entries by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Arrays {
    /// The arrays.
    pub arrays: BTreeMap<String, ArrayD<f64>>,
    /// The text entries.
    pub text: BTreeMap<String, String>,
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArraysError {
    /// The file cannot be read or written.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: String,
        /// The I/O error.
        cause: io::Error,
    },
    /// The staging folder could not be made, or the file not be published.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The file is not of the expected kind, or is damaged.
    #[error("{path}: not a {kind} file: {detail}")]
    Format {
        /// The file.
        path: String,
        /// The expected kind.
        kind: &'static str,
        /// What is wrong.
        detail: String,
    },
}

/// Metadata key of the kind of a file.
pub const FORMAT: &str = "format";

impl Arrays {
    /// Adds an array.
    pub fn put<D: Dimension>(&mut self, name: &str, array: &ArrayView<f64, D>) {
        self.arrays
            .insert(name.to_owned(), array.to_owned().into_dyn());
    }

    /// The array `name` with the number of dimensions of `D`.
    ///
    /// # Errors
    /// A text for a message, if it is missing or has another number of dimensions.
    pub fn get<D: Dimension>(&self, name: &str) -> Result<ndarray::Array<f64, D>, String> {
        let array = self
            .arrays
            .get(name)
            .ok_or_else(|| format!("it has no '{name}'"))?;
        array
            .clone()
            .into_dimensionality()
            .map_err(|_| format!("'{name}' has shape {:?}", array.shape()))
    }

    /// The text entry `key`.
    ///
    /// # Errors
    /// A text for a message, if it is missing.
    pub fn entry(&self, key: &str) -> Result<&str, String> {
        let entry = self.text.get(key).map(String::as_str);
        entry.ok_or_else(|| format!("its metadata has no '{key}'"))
    }

    /// Writes a file of this `kind`.
    ///
    /// # Errors
    /// [`ArraysError::Io`] and [`ArraysError::Staging`].
    pub fn save(&self, kind: &'static str, path: &Path) -> Result<(), ArraysError> {
        let failed = |cause: io::Error| ArraysError::Io {
            path: path.display().to_string(),
            cause,
        };
        let odd = |e: safetensors::SafeTensorError| failed(io::Error::other(e.to_string()));
        let bytes: Vec<(&String, Vec<usize>, Vec<u8>)> = self
            .arrays
            .iter()
            .map(|(name, array)| {
                let bytes = array.iter().flat_map(|x| x.to_le_bytes()).collect();
                (name, array.shape().to_vec(), bytes)
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| {
                Ok((name, TensorView::new(Dtype::F64, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(odd)?;
        let mut text: HashMap<String, String> = self.text.clone().into_iter().collect();
        text.insert(FORMAT.to_owned(), kind.to_owned());
        let encoded = serialize(views, Some(text)).map_err(odd)?;
        let staging = Staging::file(path)?;
        fs::write(staging.staged(), encoded).map_err(failed)?;
        staging.publish()?;
        Ok(())
    }

    /// Reads a file of this `kind`.
    ///
    /// # Errors
    /// [`ArraysError`] with the file.
    pub fn load(kind: &'static str, path: &Path) -> Result<Self, ArraysError> {
        let bytes = fs::read(path).map_err(|cause| ArraysError::Io {
            path: path.display().to_string(),
            cause,
        })?;
        Self::parse(kind, &bytes).map_err(|detail| ArraysError::Format {
            path: path.display().to_string(),
            kind,
            detail,
        })
    }

    fn parse(kind: &str, bytes: &[u8]) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let text: BTreeMap<String, String> = header
            .metadata()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        let found = text.get(FORMAT).map_or("", String::as_str);
        if found != kind {
            return Err(format!("its format is '{found}'"));
        }
        let mut arrays = BTreeMap::new();
        for (name, tensor) in file.tensors() {
            if tensor.dtype() != Dtype::F64 {
                return Err(format!("'{name}' is not fp64"));
            }
            let elements = tensor.data().chunks_exact(8).map(|b| {
                let mut eight = [0; 8];
                eight.copy_from_slice(b);
                f64::from_le_bytes(eight)
            });
            let array = ArrayD::from_shape_vec(IxDyn(tensor.shape()), elements.collect());
            arrays.insert(name, array.map_err(|e| e.to_string())?);
        }
        Ok(Self { arrays, text })
    }
}
