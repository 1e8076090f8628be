//! The model type of the library's interface.

use std::path::Path;

use gqa2mla_passes::analysis::AnalysisError;
use gqa2mla_passes::graph::text;
use gqa2mla_passes::{Inspection, inspect};

use crate::files::load::{LoadError, LoadedModel, from_bytes, load};
use crate::files::save::{SaveError, save};

/// An ONNX model. External weights are memory-mapped.
#[derive(Debug)]
pub struct Model {
    pub(crate) loaded: LoadedModel,
}

impl Model {
    /// Reads the model at `path`: an .onnx file with its data files, or a folder that contains one.
    ///
    /// # Errors
    /// [`LoadError`] with the file and the reason.
    ///
    /// ```
    /// let model = gqa2mla::Model::open("fixtures/optimum-llama/model.onnx")?;
    /// assert_eq!(model.inspect()?.sites.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        Ok(Self {
            loaded: load(path.as_ref())?,
        })
    }

    /// Reads a model from the bytes of an .onnx file without external data.
    ///
    /// # Errors
    /// [`LoadError`] if the bytes are not a model, or a tensor is external.
    ///
    /// ```
    /// let bytes = std::fs::read("fixtures/optimum-llama/model.onnx")?;
    /// let model = gqa2mla::Model::from_bytes(bytes)?;
    /// assert!(model.text().contains("Softmax"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self, LoadError> {
        Ok(Self {
            loaded: from_bytes(bytes.into().into())?,
        })
    }

    /// All attentions of the model: recognised ones, and others with the reasons why they are not recognised.
    ///
    /// # Errors
    /// [`AnalysisError`] if the graph is malformed.
    ///
    /// ```
    /// let found = gqa2mla::Model::open("fixtures/optimum-llama")?.inspect()?;
    /// let first = &found.sites[0];
    /// assert_eq!((first.heads, first.kv_heads, first.key.size), (8, 2, 16));
    /// assert!(found.rejects.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn inspect(&self) -> Result<Inspection, AnalysisError> {
        inspect(&self.loaded.model)
    }

    /// The model as stable text: inputs, initializers (weights without elements), nodes and outputs.
    pub fn text(&self) -> String {
        let proto = &self.loaded.model.proto;
        let mut lines = text::header(proto);
        lines.extend(proto.graph.iter().flat_map(text::graph));
        lines.join("\n")
    }

    /// Writes the model to `path`, and its large tensors to a data file beside it.
    ///
    /// # Errors
    /// [`SaveError`] with the file. Nothing is written to `path` then.
    ///
    /// ```
    /// let folder = tempfile::tempdir()?;
    /// let model = gqa2mla::Model::open("fixtures/optimum-llama")?;
    /// let path = folder.path().join("copy.onnx");
    /// model.save(&path)?;
    /// assert_eq!(gqa2mla::Model::open(&path)?.text(), model.text());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), SaveError> {
        save(&self.loaded, path.as_ref()).map(|_| ())
    }
}
