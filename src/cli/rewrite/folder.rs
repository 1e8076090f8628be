//! A folder rewritten to a folder that the same stack serves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use gqa2mla::compress::compressor::Destination;
use gqa2mla::compress::request::Request;
use gqa2mla::compress::run::compress;
use gqa2mla::compress::widths::Widths;
use gqa2mla::files::load::load;
use gqa2mla::serving::bundle::{Assembly, Bundle};
use gqa2mla::serving::{self, Edit, Latent, Stack, edited};
use gqa2mla_passes::operators::Target;

use crate::cli::exit::in_options;
use crate::cli::rewrite::ending::Ending;
use crate::cli::screen::observer;

/// The stack that a folder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ServingArg {
    Auto,
    Genai,
    Optimum,
    TransformersJs,
    Triton,
    None,
}

impl ServingArg {
    fn stacks(self, files: &[String]) -> Vec<Stack> {
        match self {
            Self::Auto => Stack::guess(files),
            Self::Genai => vec![Stack::Genai],
            Self::Optimum => vec![Stack::Optimum],
            Self::TransformersJs => vec![Stack::TransformersJs],
            Self::Triton => vec![Stack::Triton],
            Self::None => Vec::new(),
        }
    }
}

/// What a folder is rewritten to, and how.
pub struct FolderRewrite<'f> {
    /// The folder.
    pub folder: &'f Path,
    /// The model to rewrite; `None` rewrites every one with a cache.
    pub only: Option<&'f Path>,
    /// The folder to make.
    pub out: &'f Path,
    /// The stack it is for.
    pub serving: ServingArg,
    /// How each model is compressed.
    pub request: &'f Request,
}

impl FolderRewrite<'_> {
    /// Rewrites every model with a cache, and makes a folder that the same stack serves. Adds each model to `ending`;
    /// returns where the folder is.
    pub fn run(&self, ending: &mut Ending) -> anyhow::Result<PathBuf> {
        let bundle = Bundle::read(self.folder, self.only, self.out)?;
        let stacks = self.serving.stacks(&bundle.names());
        let files: Vec<&str> = stacks.iter().map(|s| s.file()).collect();
        let texts = bundle.texts(&files)?;
        let in_folder = || self.folder.display().to_string();
        let uniform = self.request.widths == Widths::Uniform;
        serving::check(&stacks, &texts, uniform).with_context(in_folder)?;
        let mut assembly = Assembly::begin(self.out)?;
        let mut compressions = Vec::new();
        let mut changed: Option<(BTreeMap<String, String>, Vec<Edit>)> = None;
        for file in &bundle.models {
            let model = load(&bundle.root.join(file))?;
            let place = assembly.path(&serving::place(&stacks, &texts, file));
            let destination = Destination {
                out: &place,
                data: serving::data_file(&stacks, &model),
                work: self.out.parent(),
            };
            let made = compress(&model, &destination, self.request, &mut observer());
            let compression = made.map_err(in_options)?;
            let after = &compression.compressed.written()?.model.proto;
            let latent = Latent::of(&model, after, self.request.options.target == Target::Gqa);
            let latent = latent.with_context(|| model.path.display().to_string())?;
            let edited = edited(&stacks, &texts, &latent).with_context(in_folder)?;
            if changed.as_ref().is_some_and(|known| *known != edited) {
                let words = "the models of this folder need configurations that differ: rewrite one of them with --file";
                return Err(anyhow::anyhow!(words).context(in_folder()));
            }
            changed = Some(edited);
            compressions.push((file, compression));
        }
        let (changed, edits) = changed.unwrap_or_default();
        for file in &bundle.others {
            match changed.get(file.to_string_lossy().as_ref()) {
                Some(text) => assembly.write(file, text)?,
                None => assembly.copy(&bundle.root, file)?,
            }
        }
        let new = changed
            .iter()
            .filter(|(file, _)| !texts.contains_key(*file));
        for (file, text) in new {
            assembly.write(Path::new(file), text)?;
        }
        let edited = changed.keys().filter(|c| texts.contains_key(*c)).count();
        ending.folder(&bundle, &stacks, edits, bundle.others.len() - edited);
        for (file, compression) in compressions {
            ending.add(file, &compression);
            compression.compressed.publish()?;
        }
        Ok(match ending.accepted {
            true => assembly.publish()?,
            false => assembly.reject()?,
        })
    }
}
