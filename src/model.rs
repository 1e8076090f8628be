//! A model as a caller of the library holds it.

use std::path::Path;

use gqa2mla_passes::analysis::AnalysisError;
use gqa2mla_passes::graph::text;
use gqa2mla_passes::{Inspection, inspect};

use crate::files::load::{LoadError, LoadedModel, from_bytes, load};
use crate::files::save::{SaveError, save};

/// An ONNX model in memory. Its weights stay in their files until they are needed.
#[derive(Debug)]
pub struct Model {
    pub(crate) loaded: LoadedModel,
}

impl Model {
    /// Reads the model at `path`: a .onnx file with its data files, or a folder that holds one.
    ///
    /// # Errors
    /// [`LoadError`] with the file and what is wrong with it.
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

    /// Reads a model from the bytes of a .onnx file whose tensors are all inside it.
    ///
    /// # Errors
    /// [`LoadError`] when the bytes are no model, or a tensor is stored elsewhere.
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

    /// Every attention of the model: those that are recognised, and those that are not, with the reasons.
    ///
    /// # Errors
    /// [`AnalysisError`] when the graph is not well-formed.
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

    /// The model as stable text: nodes, initializers without the numbers of weights, and the interface.
    pub fn text(&self) -> String {
        let proto = &self.loaded.model.proto;
        let mut lines = text::header(proto);
        lines.extend(proto.graph.iter().flat_map(text::graph));
        lines.join("\n")
    }

    /// Writes the model to `path`, and its large tensors beside it.
    ///
    /// # Errors
    /// [`SaveError`] with the file; nothing is left under its name then.
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
