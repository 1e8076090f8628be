//! The edits with which serving stacks serve a rewritten model, and the models that they cannot serve.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gqa2mla_passes::forms::Join;

use crate::files::load::LoadedModel;
use crate::files::save::DataFile;
use crate::serving::config::{self, Edit};
use crate::serving::error::{ServingError, differing_widths};
use crate::serving::latent::Latent;
use crate::serving::stack::Stack;
use crate::serving::{genai, optimum, transformers_js, triton};

/// Largest size of a model file without data file, in bytes: with the new weights it must stay below protobuf's 2 GiB.
const LARGEST_INLINE: usize = 1 << 30;

/// Largest data file of a model for browsers, in bytes: a browser fetches a file into one buffer, which must be smaller
/// than 2 GiB.
const LARGEST_FETCHED: u64 = 2_000_000_000;

/// Checks, before the rewrite, that the configurations of `stacks` exist and can be read, and if `one_width` is false
/// that the stacks support different ranks.
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
        if !one_width && *stack == Stack::Optimum {
            return Err(differing_widths(*stack));
        }
    }
    Ok(())
}

/// Checks that `stacks` support caches to which new rows are appended as `join` says.
///
/// # Errors
/// [`ServingError::Refused`] with the first stack that does not support them.
pub fn check_join(stacks: &[Stack], join: Join) -> Result<(), ServingError> {
    match stacks.first().filter(|_| join == Join::InPlace) {
        Some(stack) => Err(ServingError::Refused {
            stack: stack.name(),
            reason: "its loop feeds the past alone, and --cache-io inplace needs room for the new tokens behind it: use --cache-io append, or bind the caches in a loop of your own (docs/serving.md)".to_owned(),
        }),
        None => Ok(()),
    }
}

/// The data file of the model `path` of a folder for `stacks`: transformers.js requires certain file names. `kept` are the
/// files of the folder that are not changed; a model that is not rewritten may read one of them as its data.
///
/// # Errors
/// [`ServingError::Refused`] if such a file has the name that a stack requires.
pub fn data_file(
    stacks: &[Stack],
    (path, model): (&Path, &LoadedModel),
    kept: &[PathBuf],
) -> Result<DataFile, ServingError> {
    let is_kept = |name: &str| kept.contains(&path.with_file_name(name));
    let own = file_name(model);
    let (data, web) = (format!("{own}.data"), format!("{own}_data"));
    let locations: Vec<&String> = model.sources.keys().collect();
    if stacks.contains(&Stack::TransformersJs) {
        let inline = locations.is_empty() && model.source.bytes().len() < LARGEST_INLINE;
        return match inline {
            true => Ok(DataFile::Inline),
            false if is_kept(&web) => Err(ServingError::Refused {
                stack: Stack::TransformersJs.name(),
                reason: format!(
                    "another model reads the data file {web}, which the rewritten model needs for itself: give that model a data file of its own"
                ),
            }),
            false => Ok(DataFile::Chunks {
                name: web,
                largest: LARGEST_FETCHED,
            }),
        };
    }
    // A name that is made of the model's is no other model's, and a fixed name is safe, because the folder is published as a
    // whole.
    let name = match locations.as_slice() {
        [only] if **only == web => web,
        _ => data,
    };
    Ok(match is_kept(&name) {
        true => DataFile::Beside,
        false => DataFile::Named(name),
    })
}

fn file_name(model: &LoadedModel) -> std::borrow::Cow<'_, str> {
    model.path.file_name().unwrap_or_default().to_string_lossy()
}

/// An error unless `stack` is Triton, whose configuration can be generated from the model; others have further content.
fn missing(stack: Stack) -> Result<(), ServingError> {
    match stack {
        Stack::Triton => Ok(()),
        _ => Err(ServingError::Missing {
            stack: stack.name(),
            file: stack.file(),
        }),
    }
}

/// The path of a model in the new folder. For a new Triton configuration, models are in a folder per version.
#[must_use]
pub fn place(stacks: &[Stack], texts: &BTreeMap<String, String>, model: &Path) -> PathBuf {
    let anew = stacks.contains(&Stack::Triton) && !texts.contains_key(Stack::Triton.file());
    match model.file_name() {
        Some(name) if anew => Path::new("1").join(name),
        _ => model.to_path_buf(),
    }
}

/// The configurations of `stacks` for the rewritten model: new texts by file name, and the edits.
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
    let other_files = latent.data_files.0 != latent.data_files.1;
    let has_to_change = |stack: &Stack| match stack {
        Stack::Triton => true,
        Stack::TransformersJs if other_files => true,
        _ => anew(stack) || !latent.keeps_shapes(),
    };
    for stack in stacks.iter().filter(|stack| has_to_change(stack)) {
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
