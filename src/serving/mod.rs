//! What serving stacks read beside a model: the edits with which they serve a latent cache.
//!
//! The contract of each stack is in its own file; none of them reads a file, they are given texts and give texts back.

pub mod bundle;
mod config;
mod genai;
mod optimum;
mod transformers_js;
mod triton;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gqa2mla_passes::onnx::ModelProto;

use crate::files::load::LoadedModel;
use crate::files::save::DataFile;
use crate::validate::ValidateError;
use crate::validate::interface::{Cache, Dim, Interface, Port};
use crate::validate::ports::{declared, subject};

pub use config::{Config, Edit};

/// A model file that grows by its new weights has to stay below the 2 GiB of one message.
const LARGEST_INLINE: usize = 1 << 30;

/// Something that serves models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// onnxruntime-genai: `genai_config.json`.
    Genai,
    /// Optimum's `ORTModelForCausalLM`: `config.json`.
    Optimum,
    /// transformers.js: `config.json`, with the models in `onnx/`.
    TransformersJs,
    /// Triton's ONNX Runtime backend: `config.pbtxt`.
    Triton,
}

impl Stack {
    /// Every stack.
    pub const ALL: [Self; 4] = [
        Self::Genai,
        Self::Optimum,
        Self::TransformersJs,
        Self::Triton,
    ];

    /// As the command line and reports name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Genai => "genai",
            Self::Optimum => "optimum",
            Self::TransformersJs => "transformers-js",
            Self::Triton => "triton",
        }
    }

    /// The configuration it reads.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::Genai => "genai_config.json",
            Self::Optimum | Self::TransformersJs => "config.json",
            Self::Triton => "config.pbtxt",
        }
    }

    /// The stacks that a folder with these files, relative to it and with `/` between their parts, is made for.
    #[must_use]
    pub fn guess(files: &[String]) -> Vec<Self> {
        let has = |name: &str| files.iter().any(|f| f == name);
        let in_onnx = files
            .iter()
            .any(|f| f.starts_with("onnx/") && f.ends_with(".onnx"));
        Self::ALL
            .into_iter()
            .filter(|stack| has(stack.file()))
            .filter(|stack| match stack {
                Self::Optimum => !in_onnx,
                Self::TransformersJs => in_onnx,
                Self::Genai | Self::Triton => true,
            })
            .collect()
    }
}

/// The caches of a model before and after, as stacks see them.
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    before: Interface,
    after: Interface,
    fused: bool,
    /// Inputs and outputs of the rewritten model.
    ports: (Vec<Port>, Vec<Port>),
    /// The model's file name, and in how many files its weights were.
    file: String,
    data_files: usize,
}

/// Why a stack cannot serve the rewritten model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServingError {
    /// A configuration that cannot be read.
    #[error("{file}: {detail}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong, and where.
        detail: String,
    },
    /// Nothing to edit.
    #[error("{stack} reads {file}, which is not in the folder")]
    Missing {
        /// The stack.
        stack: &'static str,
        /// The file.
        file: &'static str,
    },
    /// A cache that it cannot hold.
    #[error(
        "{stack} cannot serve this cache: {reason} (--serving none leaves the configuration as it is)"
    )]
    Refused {
        /// The stack.
        stack: &'static str,
        /// Why, and what to do.
        reason: String,
    },
}

impl Latent {
    /// Reads the interfaces of a model and of what became of it; `fused` says that operators of the runtime carry the cache.
    ///
    /// # Errors
    /// [`ValidateError`] when one of them is not a language model's.
    pub fn of(
        before: &LoadedModel,
        after: &ModelProto,
        fused: bool,
    ) -> Result<Self, ValidateError> {
        let file = before.path.file_name().unwrap_or_default();
        Ok(Self {
            before: subject(&before.model.proto)?.interface,
            after: subject(after)?.interface,
            fused,
            ports: declared(after),
            file: file.to_string_lossy().into_owned(),
            data_files: before.sources.len(),
        })
    }

    /// Whether both have caches of the same shapes, so that no configuration has to change.
    fn is_unchanged(&self) -> bool {
        let dims = |i: &Interface| i.caches.iter().map(|c| c.dims.clone()).collect::<Vec<_>>();
        dims(&self.before) == dims(&self.after)
    }

    /// The one width of every cache, where stacks compute a shape from a configuration instead of reading each model's.
    fn width(&self, stack: Stack) -> Result<usize, ServingError> {
        let refused = |reason: &str| ServingError::Refused {
            stack: stack.name(),
            reason: reason.to_owned(),
        };
        let mut widths = self.after.caches.iter().map(latent_width);
        let first = widths
            .next()
            .flatten()
            .ok_or_else(|| refused("some caches are as they were, or their width is open"))?;
        match widths.all(|w| w == Some(first)) {
            true => Ok(first),
            false => Err(differing_widths(stack)),
        }
    }

    /// Names of each cache and its width, where it is a latent.
    fn widths(&self) -> impl Iterator<Item = (&Cache, Option<usize>)> {
        self.after.caches.iter().map(|c| (c, latent_width(c)))
    }
}

/// Of [B, 1, P, r].
fn latent_width(cache: &Cache) -> Option<usize> {
    match cache.dims.as_slice() {
        [_, Dim::Fixed(1), _, Dim::Fixed(width)] => Some(*width),
        _ => None,
    }
}

/// Refuses what can be told before a model is rewritten: configurations that cannot be read or are missing, and with
/// `one_width` false, stacks that have no place for widths that differ.
///
/// # Errors
/// [`ServingError`] for the first stack that cannot serve it.
pub fn check(
    stacks: &[Stack],
    texts: &BTreeMap<String, String>,
    one_width: bool,
) -> Result<(), ServingError> {
    for stack in stacks {
        let file = stack.file();
        let Some(text) = texts.get(file) else {
            missing(*stack)?;
            continue;
        };
        match stack {
            Stack::Triton => triton::check(text)?,
            _ => config::read(file, text).map(|_| ())?,
        }
        if !one_width && matches!(stack, Stack::Genai | Stack::Optimum) {
            return Err(differing_widths(*stack));
        }
    }
    Ok(())
}

/// Where the weights of a model in a folder for `stacks` go: to the file that they were in, or else to one of a fixed name,
/// as transformers.js fetches files by the names that it expects. The folder is published as a whole, so that no old model
/// meets new weights.
#[must_use]
pub fn data_file(stacks: &[Stack], model: &LoadedModel) -> DataFile {
    let locations: Vec<&String> = model.sources.keys().collect();
    match locations.as_slice() {
        [only] if !only.contains(['/', '\\']) => DataFile::Named((*only).clone()),
        [] if stacks.contains(&Stack::TransformersJs)
            && model.source.bytes().len() < LARGEST_INLINE =>
        {
            DataFile::Inline
        }
        _ => {
            let name = model.path.file_name().unwrap_or_default();
            let ending = match stacks.contains(&Stack::TransformersJs) {
                true => "_data",
                false => ".data",
            };
            DataFile::Named(format!("{}{ending}", name.to_string_lossy()))
        }
    }
}

/// Only Triton's configuration can be made from the model alone; the others say more than a model does.
fn missing(stack: Stack) -> Result<(), ServingError> {
    match stack {
        Stack::Triton => Ok(()),
        _ => Err(ServingError::Missing {
            stack: stack.name(),
            file: stack.file(),
        }),
    }
}

/// Where a model of the folder goes: Triton, for which a folder is laid out anew, has models in folders of versions.
#[must_use]
pub fn place(stacks: &[Stack], texts: &BTreeMap<String, String>, model: &Path) -> PathBuf {
    let anew = stacks.contains(&Stack::Triton) && !texts.contains_key(Stack::Triton.file());
    match model.file_name() {
        Some(name) if anew => Path::new("1").join(name),
        _ => model.to_path_buf(),
    }
}

fn differing_widths(stack: Stack) -> ServingError {
    ServingError::Refused {
        stack: stack.name(),
        reason: "it allocates one width for the keys and values of all layers, and they differ (use --layout uniform, and rewrite every attention)".to_owned(),
    }
}

/// The configurations of `stacks` for the rewritten model: new texts by file name, and what was edited in them.
///
/// # Errors
/// [`ServingError`] for the first stack that cannot serve it.
pub fn edited(
    stacks: &[Stack],
    texts: &BTreeMap<String, String>,
    latent: &Latent,
) -> Result<(BTreeMap<String, String>, Vec<Edit>), ServingError> {
    let (mut changed, mut edits) = (BTreeMap::new(), Vec::new());
    let anew = |stack: &Stack| !texts.contains_key(stack.file());
    if latent.is_unchanged() && !stacks.iter().any(anew) {
        return Ok((changed, edits));
    }
    for stack in stacks {
        let file = stack.file();
        let Some(text) = changed.get(file).or(texts.get(file)) else {
            missing(*stack)?;
            let (text, made) = triton::made(latent);
            changed.insert(file.to_owned(), text);
            edits.extend(made);
            continue;
        };
        let (text, made) = match stack {
            Stack::Genai => genai::edit(text, latent)?,
            Stack::Optimum => optimum::edit(text, latent)?,
            Stack::TransformersJs => transformers_js::edit(text, latent)?,
            Stack::Triton => triton::edit(text, latent)?,
        };
        changed.insert(file.to_owned(), text);
        edits.extend(made);
    }
    Ok((changed, edits))
}
