//! `--target auto`: the target whose steps take the least time on this machine.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::cli::bench::usual;
use crate::cli::exit::{Exit, UsageError, exit_of, in_options};
use crate::cli::rewrite::form::TargetArg;
use crate::cli::screen::Screen;
use crate::compress::convert::Staged;
use crate::compress::draft::draft;
use crate::compress::promise::Promise;
use crate::compress::request::Request;
use crate::files::load::{LoadedModel, load};
use crate::fit::context::Context;
use crate::report::counted;
use crate::runtime::RuntimeOptions;
use crate::serving::folder::FolderError;
use crate::validate::ports::LanguageModel;

/// A target that was chosen, and why.
pub struct Choice {
    /// The target.
    pub target: TargetArg,
    why: String,
    /// Median milliseconds of a step by target, if both were measured.
    milliseconds: Map<String, Value>,
}

/// The rewritten model of one target, with blank factors. Its files are removed when it is dropped.
pub struct Draft {
    target: TargetArg,
    model: LoadedModel,
    /// The context of the original, in positions.
    context: usize,
    _files: Staged,
}

impl Draft {
    /// Makes the draft of the first of `models` with a cache, staged beside the path `output`.
    ///
    /// # Errors
    /// Those of the rewrite of the model; a [`UsageError`] if no model has a cache.
    pub fn of(
        target: TargetArg,
        models: &[LoadedModel],
        request: &Request,
        output: &Path,
    ) -> anyhow::Result<Self> {
        let has_cache = |model: &&LoadedModel| {
            let known = LanguageModel::of(&model.model.proto);
            known.is_ok_and(|known| !known.interface.caches.is_empty())
        };
        let Some(model) = models.iter().find(has_cache) else {
            let words = "--target auto measures decode steps, which need a cache, and the model has none: give --target matmul or gqa";
            return Err(UsageError(words.to_owned()).into());
        };
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(format!(".draft-{}.onnx", target.name()));
        let files = draft(model, request, &output.with_file_name(name)).map_err(in_options)?;
        Ok(Self {
            target,
            model: load(&files.path())?,
            context: Context::of(request.options.context, model)?.positions,
            _files: files,
        })
    }
}

impl Choice {
    /// The line of the text output.
    pub fn text(&self) -> String {
        format!("target {}: {}\n", self.target.name(), self.why)
    }

    /// The choice as JSON.
    pub fn json(&self) -> Value {
        json!({ "target": self.target.name(), "why": self.why, "milliseconds": self.milliseconds })
    }
}

/// Refuses the target `auto` with options that do not allow a measurement.
///
/// # Errors
/// [`UsageError`].
pub fn check_measurable(
    promise: Option<Promise>,
    dry_run: bool,
    no_validate: bool,
) -> Result<(), UsageError> {
    let hindrance = match promise {
        Some(_) => "measures one size, which a promise does not give",
        None if dry_run => "runs both targets, and --dry-run runs nothing",
        None if no_validate => "runs both targets, and --no-validate runs nothing",
        None => return Ok(()),
    };
    Err(UsageError(format!(
        "--target auto {hindrance}: give --target matmul or gqa"
    )))
}

/// Chooses the target with the shortest decode step at the longest usual past: the drafts of both run side by side. If only one
/// target works, it is chosen.
///
/// # Errors
/// The first error if no target works; an error that is no refusal, such as a full disk; that of the measurement.
pub fn fastest(
    draft: &dyn Fn(TargetArg) -> anyhow::Result<Draft>,
    runtime: RuntimeOptions,
    screen: &Screen,
) -> anyhow::Result<Choice> {
    let only = |target: TargetArg, other: TargetArg, refusal: &anyhow::Error| Choice {
        target,
        why: format!("{} is refused: {refusal:#}", other.name()),
        milliseconds: Map::new(),
    };
    let (matmul, gqa) = (TargetArg::Matmul, TargetArg::Gqa);
    match (refusable(draft(matmul))?, refusable(draft(gqa))?) {
        (Ok(matmul), Ok(gqa)) => measured(&[matmul, gqa], runtime, screen),
        (Ok(_), Err(refusal)) => Ok(only(matmul, gqa, &refusal)),
        (Err(refusal), Ok(_)) => Ok(only(gqa, matmul, &refusal)),
        (Err(refusal), Err(_)) => Err(refusal),
    }
}

/// The draft, or why this target is refused; any other error, such as a full disk, as an error.
fn refusable(draft: anyhow::Result<Draft>) -> anyhow::Result<anyhow::Result<Draft>> {
    match draft {
        Err(error) if !is_refusal(&error) => Err(error),
        draft => Ok(draft),
    }
}

fn is_refusal(error: &anyhow::Error) -> bool {
    let by_stack = matches!(
        error.downcast_ref(),
        Some(FolderError::Serving { .. } | FolderError::Differ { .. })
    );
    by_stack || matches!(exit_of(error), Exit::Usage | Exit::Nothing)
}

fn measured(
    drafts: &[Draft; 2],
    runtime: RuntimeOptions,
    screen: &Screen,
) -> anyhow::Result<Choice> {
    let [first, second] = drafts;
    let models = [first.model.clone(), second.model.clone()];
    let benched = usual(&models, first.context, &[], runtime, screen)
        .context("--target auto: the decode steps were not measured (--target matmul and gqa need no measurement)")?;
    let step = benched
        .phases
        .last()
        .context("no decode step was measured")?;
    let mut times: Vec<(TargetArg, f64)> = drafts
        .iter()
        .zip(&step.timings)
        .map(|(draft, timing)| (draft.target, timing.milliseconds.median))
        .collect();
    times.sort_by(|a, b| a.1.total_cmp(&b.1));
    let milliseconds = times.iter().map(|(t, ms)| (t.name().to_owned(), json!(ms)));
    let milliseconds = milliseconds.collect();
    let told: Vec<String> = times
        .iter()
        .map(|(target, time)| format!("{time:.1} ms with {}", target.name()))
        .collect();
    Ok(Choice {
        target: times.first().map_or(first.target, |(target, _)| *target),
        why: format!(
            "a decode step at {} takes {}",
            counted(step.phase.past, "past token"),
            told.join(", ")
        ),
        milliseconds,
    })
}
