//! A folder rewritten to a folder that the same stack serves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::ValueEnum;
use gqa2mla::files::load::load;
use gqa2mla::files::outputs::{check_file, check_folder};
use gqa2mla::files::staging::Staging;
use gqa2mla::serving::bundle::Bundle;
use gqa2mla::serving::{self, Edit, Latent, Stack, edited};

use crate::cli::Outcome;
use crate::cli::rewrite::layout::LayoutArg;
use crate::cli::rewrite::told::{ReportFile, Told};
use crate::cli::rewrite::{Rewrite, TargetArg};

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

impl Rewrite {
    /// Rewrites every model with a cache of a folder, and gives a folder that the same stack serves.
    pub fn folder(
        self,
        started: Instant,
        json: bool,
        report: Option<ReportFile>,
    ) -> anyhow::Result<Outcome> {
        check_folder(&self.model, &self.out, &[], self.force)?;
        let bundle = Bundle::read(&self.model, self.file.as_deref(), &self.out)?;
        let stacks = self.serving.stacks(&bundle.names());
        let files: Vec<&str> = stacks.iter().map(|s| s.file()).collect();
        let texts = bundle.texts(&files)?;
        let in_folder = || self.model.display().to_string();
        serving::check(&stacks, &texts, self.layout == LayoutArg::Uniform)
            .with_context(in_folder)?;
        let written: Vec<PathBuf> = bundle
            .models
            .iter()
            .map(|model| serving::place(&stacks, &texts, model))
            .chain(bundle.others.iter().cloned())
            .chain(files.iter().map(PathBuf::from))
            .collect();
        check_folder(&self.model, &self.out, &written, self.force)?;
        if let Some(report) = &report {
            for file in bundle.models.iter().chain(&bundle.others) {
                check_file(report.path(), &[&bundle.root.join(file)])?;
            }
        }
        let staging = Staging::folder(&self.out, &bundle.root)?;
        let mut attempts = Vec::new();
        let mut changed: Option<(BTreeMap<String, String>, Vec<Edit>)> = None;
        for file in &bundle.models {
            let model = load(&bundle.root.join(file))?;
            let data = serving::data_file(&stacks, &model);
            let place = staging.path(&serving::place(&stacks, &texts, file));
            let attempt = self.attempt(&model, &place, data, self.out.parent())?;
            let after = &attempt.compressed.staged.model.model.proto;
            let latent = Latent::of(&model, after, self.target == TargetArg::Gqa);
            let latent = latent.with_context(|| model.path.display().to_string())?;
            let edited = edited(&stacks, &texts, &latent).with_context(in_folder)?;
            if changed.as_ref().is_some_and(|known| *known != edited) {
                let words = "the models of this folder need configurations that differ: rewrite one of them with --file";
                return Err(anyhow::anyhow!(words).context(in_folder()));
            }
            changed = Some(edited);
            attempts.push((file, attempt));
        }
        let (changed, edits) = changed.unwrap_or_default();
        for file in &bundle.others {
            match changed.get(file.to_string_lossy().as_ref()) {
                Some(text) => staging.write(file, text.as_bytes())?,
                None => staging.copy(file)?,
            }
        }
        for (file, text) in changed
            .iter()
            .filter(|(file, _)| !texts.contains_key(*file))
        {
            staging.write(Path::new(file), text.as_bytes())?;
        }
        let mut told = Told::new(&self.model, started);
        let copied =
            bundle.others.len() - changed.keys().filter(|c| texts.contains_key(*c)).count();
        told.folder(&bundle, &stacks, edits, copied);
        for (file, attempt) in attempts {
            told.add(file, &attempt, self.report.is_some());
            attempt.compressed.publish()?;
        }
        let output = match told.accepted {
            true => staging.publish()?,
            false => staging.reject()?,
        };
        told.finish(&output, json, report)
    }
}
