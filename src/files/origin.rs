//! Inspection of a model file without reading weights: whether this tool wrote it, and which data files it refers to.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use gqa2mla_passes::forms::ExactTokens;
use gqa2mla_passes::onnx::stored::{External, visit_tensors};
use gqa2mla_passes::onnx::{ModelProto, StringStringEntryProto};
use prost::Message;
use serde_json::{Value, json};

use crate::files::mapped::Source;

/// Metadata key of every model written by this tool. Its value is a JSON object with at least the key `version`.
pub const MARK: &str = "gqa2mla";

/// Key of this JSON object for how an approximation reads the new tokens of a step.
pub const NEW_TOKENS: &str = "new_tokens";
/// The new tokens of a step read each other's exact keys and values.
pub const EXACT: &str = "exact";
/// The tokens that fill an empty cache read each other's exact keys and values.
pub const EXACT_PROMPT: &str = "exact_prompt";

/// What to do with a model that this tool wrote.
pub const REWRITTEN: &str =
    "rewritten by gqa2mla: to change its cache, rewrite the model that it was made from";

/// Whether this tool wrote `model`.
#[must_use]
pub fn is_rewritten(model: &ModelProto) -> bool {
    model.metadata_props.iter().any(|p| p.key() == MARK)
}

/// Which tokens `model` approximates, as its metadata says.
#[must_use]
pub fn exact_tokens(model: &ModelProto) -> ExactTokens {
    let mut properties = model.metadata_props.iter();
    let note = properties.find(|p| p.key() == MARK).map(|p| p.value());
    let note = note.and_then(|text| serde_json::from_str::<Value>(text).ok());
    match note
        .as_ref()
        .and_then(|note| note.get(NEW_TOKENS)?.as_str())
    {
        Some(EXACT) => ExactTokens::Step,
        Some(EXACT_PROMPT) => ExactTokens::Prompt,
        _ => ExactTokens::None,
    }
}

/// The properties of a model file that are known without reading its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOrigin {
    /// Whether this tool wrote it.
    pub ours: bool,
    /// The locations of its external tensors.
    pub locations: BTreeSet<String>,
}

impl FileOrigin {
    /// Reads the properties of the model at `path`.
    ///
    /// # Errors
    /// I/O errors, and an error if the file is not a model.
    pub fn of(path: &Path) -> io::Result<Self> {
        let source = Source::map(path)?;
        let mut proto = ModelProto::decode(source.bytes().clone())?;
        let mut locations = BTreeSet::new();
        visit_tensors(&mut proto, &mut |tensor, _| {
            let external = External::of(tensor).map_err(io::Error::other)?;
            locations.extend(external.map(|e| e.location));
            Ok::<(), io::Error>(())
        })?;
        Ok(Self {
            ours: is_rewritten(&proto),
            locations,
        })
    }
}

/// Marks a model as written by this tool, unless it is marked already.
pub fn mark(proto: &mut ModelProto) {
    if !is_rewritten(proto) {
        proto.metadata_props.push(StringStringEntryProto {
            key: Some(MARK.to_owned()),
            value: Some(json!({ "version": env!("CARGO_PKG_VERSION") }).to_string()),
        });
    }
}

/// The name of the data file of the model file `model` with the checksum `content`.
#[must_use]
pub fn data_name(model: &str, content: u32) -> String {
    format!("{model}.{content:08x}.data")
}

/// Whether `data` is such a name of a data file of `model`.
#[must_use]
pub fn is_data_name(model: &str, data: &str) -> bool {
    let content = data
        .strip_prefix(model)
        .and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".data"));
    content.is_some_and(|hex| hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}
