//! `--target auto`: the target whose steps take the least time on this machine.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cli::bench::usual;
use crate::cli::rewrite::form::TargetArg;
use crate::cli::screen::Screen;
use crate::compress::convert::Staged;
use crate::compress::draft::draft;
use crate::compress::request::Request;
use crate::files::load::{LoadedModel, load};
use crate::report::counted;
use crate::runtime::RuntimeOptions;

/// A target that was chosen, and why.
pub struct Choice {
    /// The target.
    pub target: TargetArg,
    why: String,
    /// Median milliseconds of a step by target, if both were measured.
    milliseconds: Map<String, Value>,
}

/// A model of one target with blank factors, which is removed when dropped.
struct Draft {
    target: TargetArg,
    model: LoadedModel,
    _files: Staged,
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

/// The request with this target, or why there is none.
pub type WithTarget<'r> = dyn Fn(TargetArg) -> anyhow::Result<Request<'static>> + 'r;

/// Chooses the target with the shortest decode step at the longest usual past: both rewrites of `model`, with blank factors,
/// are staged in the folder `place` and run side by side. If only one target works, it is chosen.
pub fn fastest(
    model: &LoadedModel,
    request: &WithTarget,
    place: &Path,
    screen: &Screen,
) -> anyhow::Result<Choice> {
    let mut drafts = Vec::new();
    let mut refused = None;
    let mut runtime = RuntimeOptions::default();
    for target in [TargetArg::Matmul, TargetArg::Gqa] {
        let drafted = request(target).and_then(|request| {
            runtime = request.runtime.clone();
            let name = format!("draft-{}.onnx", target.name());
            let files = draft(model, &request, &place.join(name))?;
            Ok(Draft {
                target,
                model: load(&files.path())?,
                _files: files,
            })
        });
        match drafted {
            Ok(draft) => drafts.push(draft),
            Err(error) => refused = Some((target, error)),
        }
    }
    match (drafts.as_slice(), refused) {
        ([only], Some((other, error))) => Ok(Choice {
            target: only.target,
            why: format!("{} is refused: {error:#}", other.name()),
            milliseconds: Map::new(),
        }),
        ([_, _], _) => measured(&drafts, runtime, screen),
        // The rewrite itself tells why no target works.
        _ => Ok(Choice::default()),
    }
}

fn measured(drafts: &[Draft], runtime: RuntimeOptions, screen: &Screen) -> anyhow::Result<Choice> {
    let models: Vec<LoadedModel> = drafts.iter().map(|d| d.model.clone()).collect();
    let benched = usual(&models, &[], runtime, screen)?;
    let Some(step) = benched.phases.last() else {
        return Ok(Choice::default());
    };
    let timings = step.timings.iter().map(|t| t.milliseconds.median);
    let mut times: Vec<(TargetArg, f64)> = drafts.iter().map(|d| d.target).zip(timings).collect();
    times.sort_by(|a, b| a.1.total_cmp(&b.1));
    let milliseconds = times.iter().map(|(t, ms)| (t.name().to_owned(), json!(ms)));
    let [(target, shortest), (other, longer)] = times.as_slice() else {
        return Ok(Choice::default());
    };
    Ok(Choice {
        target: *target,
        why: format!(
            "a decode step at {} takes {shortest:.1} ms, with {} {longer:.1} ms",
            counted(step.phase.past, "past token"),
            other.name()
        ),
        milliseconds: milliseconds.collect(),
    })
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            target: TargetArg::Matmul,
            why: "no decode step was measured".to_owned(),
            milliseconds: Map::new(),
        }
    }
}
