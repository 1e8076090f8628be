//! The target context length of a rewritten model.

use std::fs;
use std::path::Path;

use gqa2mla_passes::graph::{Graph, input_at, is_contrib, is_op};
use gqa2mla_passes::onnx::{ModelProto, NodeProto};
use serde::Serialize;
use serde_json::Value;

use crate::files::load::LoadedModel;
use crate::validate::ports::LanguageModel;

/// The default context length in tokens.
const UNTOLD: usize = 4096;
/// The default length in tokens of the sequences that factors are fitted to.
const FITTED: usize = 1024;
/// Largest context length that is believed: some configurations have a placeholder for "unlimited".
const LONGEST: usize = 1 << 24;

/// Files and JSON pointers of the context length, in order of precedence: the length that is served comes before that
/// of training.
const KEYS: [(&str, &str); 6] = [
    ("genai_config.json", "/model/context_length"),
    ("config.json", "/max_position_embeddings"),
    ("config.json", "/text_config/max_position_embeddings"),
    ("config.json", "/max_sequence_length"),
    ("config.json", "/n_positions"),
    ("config.json", "/max_seq_len"),
];

/// The error of a request for more positions than the model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{asked} positions are asked for, and the position tables or static caches of the model end after {held}: ask for at most {held}"
)]
pub struct LongContext {
    /// The requested number of positions.
    pub asked: usize,
    /// The number of rows of the shortest position table or static cache.
    pub held: usize,
}

/// The target context of a rewritten model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Context {
    /// Length in tokens: positions 0 to `positions` - 1.
    pub positions: usize,
    /// The source of the length.
    pub source: ContextSource,
}

/// The source of a context length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ContextSource {
    /// The caller's request.
    Asked,
    /// A configuration beside the model, by file name.
    Configuration(String),
    /// The number of rows of the position tables in the graph, which is smaller than the length in the configuration or
    /// the default.
    Tables,
    /// The default.
    Usual,
}

impl Context {
    /// The context of a rewrite of `model`: the length `asked`, or else the length in a configuration in the folder of
    /// the model file (or in its parent folder, if the folder is called `onnx`), or else 4,096. It is limited by the
    /// position tables of the graph.
    ///
    /// # Errors
    /// [`LongContext`] if `asked` exceeds the position tables.
    pub fn of(asked: Option<usize>, model: &LoadedModel) -> Result<Self, LongContext> {
        let told = Self::told(asked, &model.path);
        match held(&model.model.proto).filter(|&held| held < told.positions) {
            None => Ok(told),
            Some(held) if told.source == ContextSource::Asked => Err(LongContext {
                asked: told.positions,
                held,
            }),
            Some(held) => Ok(Self {
                positions: held,
                source: ContextSource::Tables,
            }),
        }
    }

    /// The length of the sequences that factors of `model` are fitted to: the length `asked`, or else 1,024, or the
    /// context of the model if that is shorter.
    ///
    /// # Errors
    /// [`LongContext`] if `asked` exceeds the position tables.
    pub fn fitted(asked: Option<usize>, model: &LoadedModel) -> Result<usize, LongContext> {
        let context = Self::of(asked, model)?.positions;
        Ok(asked.unwrap_or(context.min(FITTED)))
    }

    fn told(asked: Option<usize>, model: &Path) -> Self {
        if let Some(positions) = asked {
            return Self {
                positions,
                source: ContextSource::Asked,
            };
        }
        // Exports for the web have the model in a folder `onnx` beside the configuration.
        let web = |folder: &&Path| folder.ends_with("onnx");
        let own = model.parent();
        let around = own.filter(web).and_then(Path::parent);
        let folders = own.into_iter().chain(around);
        let told = folders.flat_map(|folder| {
            let told = KEYS.map(|(file, key)| Some((file, positions(&folder.join(file), key)?)));
            told.into_iter().flatten()
        });
        let mut told = told.into_iter();
        match told.next() {
            Some((file, positions)) => Self {
                positions,
                source: ContextSource::Configuration(file.to_owned()),
            },
            None => Self {
                positions: UNTOLD,
                source: ContextSource::Usual,
            },
        }
    }
}

/// The number of positions for which every position table and every static cache of the main graph has a row: the
/// tables of cosines of attention operators and of `RotaryEmbedding`, embeddings that are indexed by `position_ids`, and
/// the buffers of static caches. `None` without such tables and caches.
fn held(model: &ModelProto) -> Option<usize> {
    let graph = Graph::new(model.graph.as_ref()?);
    let table = |node: &NodeProto| {
        let reads_positions = || input_at(node, 1).is_some_and(|i| i == "position_ids");
        let at = match node.op_type() {
            "GroupQueryAttention" if is_contrib(node, "GroupQueryAttention") => 7,
            "RotaryEmbedding" if is_contrib(node, "RotaryEmbedding") => 2,
            "RotaryEmbedding" if is_op(node, "RotaryEmbedding") => 1,
            "Gather" if is_op(node, "Gather") && reads_positions() => 0,
            _ => return None,
        };
        // A table of two axes has a row for each position.
        match graph
            .initializer(graph.resolve(input_at(node, at)?))?
            .dims
            .as_slice()
        {
            &[rows, _] => usize::try_from(rows).ok(),
            _ => None,
        }
    };
    let tables = graph.nodes().filter_map(|(_, node)| table(node)).min();
    let interface = LanguageModel::of(model).ok().map(|model| model.interface);
    let capacity = interface.and_then(|interface| interface.capacity());
    tables.into_iter().chain(capacity).min()
}

/// The number at `key` of the configuration `file`, if it is plausible.
fn positions(file: &Path, key: &str) -> Option<usize> {
    let config: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let number = usize::try_from(config.pointer(key)?.as_u64()?).ok()?;
    (1..=LONGEST).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Context, ContextSource};

    #[test]
    fn the_configuration_nearest_to_the_model_tells_and_what_is_asked_comes_first()
    -> std::io::Result<()> {
        let place = tempfile::tempdir()?;
        let inner = place.path().join("onnx");
        fs::create_dir(&inner)?;
        let model = inner.join("model.onnx");
        assert_eq!(Context::told(None, &model).positions, 4096);
        assert_eq!(Context::told(None, &model).source, ContextSource::Usual);
        let config = r#"{"max_position_embeddings": 2048}"#;
        fs::write(place.path().join("config.json"), config)?;
        assert_eq!(Context::told(None, &model).positions, 2048);
        let genai = r#"{"model": {"context_length": 8192}}"#;
        fs::write(inner.join("genai_config.json"), genai)?;
        let told = Context::told(None, &model);
        let file = "genai_config.json".to_owned();
        assert_eq!(
            (told.positions, told.source),
            (8192, ContextSource::Configuration(file))
        );
        assert_eq!(Context::told(Some(100), &model).positions, 100);
        // Neither a broken file nor a number without meaning tells anything.
        fs::write(
            inner.join("genai_config.json"),
            r#"{"model": {"context_length": 1e30}}"#,
        )?;
        fs::write(place.path().join("config.json"), "{")?;
        assert_eq!(Context::told(None, &model).positions, 4096);
        Ok(())
    }
}
