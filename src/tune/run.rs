//! A whole run: models and text made ready, steps and checks in turn, the best state written back.

use std::path::Path;

use gqa2mla_train::adamw::{self, Descent};
use gqa2mla_train::error::TrainError;
use gqa2mla_train::stored;
use serde::Serialize;

use crate::files::identity::identity;
use crate::files::load::LoadedModel;
use crate::measure::text::Text;
use crate::tune::TuneError;
use crate::tune::checkpoint;
use crate::tune::course::{Check, Course};
use crate::tune::decoder::{Decoder, spelled_out};
use crate::tune::select::{Trainable, select};
use crate::tune::steps::Run;

/// How a model is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct TuneOptions {
    /// What is trained.
    pub trainable: Trainable,
    /// Steps at most.
    pub steps: usize,
    /// Largest rate, relative to each tensor's root mean square.
    pub rate: f64,
    /// Sequences of a step.
    pub batch: usize,
    /// Which order the sequences come in.
    pub seed: u64,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All steps are done.
    Finished,
    /// The held-out loss did not fall any more.
    Early,
    /// The loss of a step was no number.
    NotFinite,
}

/// What a run has done. The model holds the best state.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tuned {
    /// Tensors trained.
    pub tensors: usize,
    /// Their elements.
    pub elements: usize,
    /// Mean loss of each step, in nats.
    pub losses: Vec<f64>,
    /// Losses on the held-out text; the first is that of the model as it was.
    pub checks: Vec<Check>,
    /// The check whose state is kept.
    pub best: Check,
    /// Why it ended.
    pub ended: Ended,
}

/// A moment of a run.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Steps there are at most.
    pub steps: usize,
    /// Loss of the last step, in nats.
    pub loss: Option<f64>,
    /// The best held-out loss so far.
    pub best: Option<f64>,
}

/// Most tokens that are held out: a check reads them with both models, and all checks together are to take less time than
/// a quarter of the steps.
const HELD_OUT: usize = 2048;
/// Checks of a run, apart from the one before it.
const CHECKS: usize = 8;
/// Trains `model` on `text`: with a `teacher` to give its next-token distribution ([`gqa2mla_train::loss::distillation`]), without one to
/// give the next token ([`gqa2mla_train::loss::next_token`]). The trained initializers are replaced in place, in their own type, by those
/// of the best check; if none is better than the start, they stay.
///
/// The state is kept in `partial` at every check, and a run with the same models, text and options goes on from there.
/// The same inputs give the same result.
///
/// # Errors
/// [`TuneError`], before the first step wherever the models, the text or the options are at fault; `model` is unchanged.
pub fn tune(
    model: &mut LoadedModel,
    teacher: Option<&LoadedModel>,
    text: &Text,
    options: &TuneOptions,
    partial: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tuned, TuneError> {
    let path = model.path.display().to_string();
    let (train, held_out) = text.hold_out(HELD_OUT).ok_or(TuneError::Text {
        found: text.ids.len(),
        needed: 3 * 2,
    })?;
    let graph = spelled_out(model)?;
    let trained = select(&graph.main, &graph.sources, options.trainable);
    if trained.is_empty() {
        return Err(TuneError::Nothing {
            path,
            detail: match options.trainable {
                Trainable::Factors => {
                    "it holds no factors of a rewrite: give a rewritten model, or --train kv"
                }
                Trainable::KeysAndValues => {
                    "no weight that makes keys or values was found: are they quantized?"
                }
            }
            .to_owned(),
        });
    }
    let student = Decoder::new(model, &graph.main, &trained)?;
    let settings = settings(model, teacher, text, options)?;
    let teacher = match teacher {
        Some(teacher) => Some(Decoder::new(teacher, &spelled_out(teacher)?.main, &[])?),
        None => None,
    };
    let run = Run {
        student,
        teacher,
        train,
        held_out,
        batch: options.batch,
        seed: options.seed,
    };
    let sizes: Vec<usize> = run
        .student
        .program
        .parameters()
        .iter()
        .map(|p| p.initial.elem_count())
        .collect();
    let (mut state, resumed) = match checkpoint::load(partial, &settings, &sizes) {
        Some(state) => (state, true),
        None => (run.fresh()?, false),
    };
    if !resumed {
        let first = run.check(&mut state)?;
        if !first.is_finite() {
            return Err(TuneError::NotFinite { path });
        }
    }
    let every = options.steps.div_ceil(CHECKS).max(1);
    let descent = Descent::new(options.steps, options.rate);
    let mut ended = Ended::Finished;
    while state.course.steps < options.steps {
        progress(moment(&state.course, options));
        if state.course.is_stuck() {
            ended = Ended::Early;
            break;
        }
        let (loss, grads) = run.step(&state)?;
        let norm = adamw::step(&mut state.tensors, &grads, &descent, state.course.steps);
        if !loss.is_finite() || !norm.is_finite() {
            ended = Ended::NotFinite;
            break;
        }
        state.course.steps += 1;
        state.course.losses.push(loss);
        if state.course.steps % every == 0 || state.course.steps == options.steps {
            run.check(&mut state)?;
            checkpoint::save(&state, &settings, partial)?;
        }
    }
    progress(moment(&state.course, options));
    let best = state.course.best().unwrap_or(Check {
        step: 0,
        loss: f64::NAN,
    });
    if best.step > 0 {
        write_back(model, &trained, &state.best)
            .map_err(|cause| TuneError::Program { path, cause })?;
    }
    Ok(Tuned {
        tensors: trained.len(),
        elements: sizes.iter().sum(),
        losses: state.course.losses,
        checks: state.course.checks,
        best,
        ended,
    })
}

/// What a run must have in common with another to go on from its checkpoint.
fn settings(
    model: &LoadedModel,
    teacher: Option<&LoadedModel>,
    text: &Text,
    options: &TuneOptions,
) -> Result<String, TuneError> {
    let ids: Vec<u8> = text.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let teacher = teacher
        .map(|teacher| identity(&teacher.model))
        .transpose()?;
    Ok(format!(
        "{} {teacher:?} {:08x} {} {options:?}",
        identity(&model.model)?,
        crc32fast::hash(&ids),
        text.length
    ))
}

/// Replaces the initializers `names` by `values`.
fn write_back(
    model: &mut LoadedModel,
    names: &[String],
    values: &[Vec<f32>],
) -> Result<(), TrainError> {
    let mut graph = model.model.proto.graph.take().unwrap_or_default();
    let written = names.iter().zip(values).try_for_each(|(name, values)| {
        let tensor = graph.initializer.iter_mut().find(|t| t.name() == name);
        let tensor = tensor.ok_or_else(|| TrainError::NoParameter(name.clone()))?;
        stored::write(tensor, values)
    });
    model.model.proto.graph = Some(graph);
    written
}

fn moment(course: &Course, options: &TuneOptions) -> Progress {
    Progress {
        step: course.steps,
        steps: options.steps,
        loss: course.losses.last().copied(),
        best: course.best().map(|best| best.loss),
    }
}
