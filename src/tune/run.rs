//! A training run: preparation of models and text, steps and checks, writing back the best state.

use std::path::Path;

use candle_core::Tensor;
use gqa2mla_passes::forms::ExactTokens;
use gqa2mla_train::adamw::{self, AdamOptions};
use gqa2mla_train::error::TrainError;
use gqa2mla_train::kernels::read;
use gqa2mla_train::stored;
use serde::Serialize;

use crate::files::identity::identity;
use crate::files::load::LoadedModel;
use crate::files::origin::exact_tokens;
use crate::runtime::given::GivenInput;
use crate::tune::TuneError;
use crate::tune::checkpoint;
use crate::tune::course::{Check, Course};
use crate::tune::decoder::{Decoder, check_branches, lowered};
use crate::tune::later_steps::of_all_steps;
use crate::tune::samples::Samples;
use crate::tune::select::{Trainable, are_factors_alone, select};
use crate::tune::steps::TrainRun;

/// The options of a training run.
#[derive(Debug, Clone, PartialEq)]
pub struct TuneOptions {
    /// The tensors to train.
    pub trainable: Trainable,
    /// Largest number of steps.
    pub steps: usize,
    /// Peak learning rate, relative to each tensor's root mean square; `None`: one that fits the loss before training.
    pub rate: Option<f64>,
    /// Target context length in tokens. If the model takes all positions from inputs, sequences are placed at random positions
    /// within it; otherwise they start at position 0.
    pub context: usize,
    /// Largest number of tokens of a sequence that a step reads. Of longer sequences, successive steps read successive
    /// chunks; the tokens before are in the cache, and have no gradient. Examples, and sequences of models without caches, are
    /// read in one run each.
    pub chunk: usize,
    /// Number of sequences per step.
    pub batch: usize,
    /// Seed of the order of sequences.
    pub seed: u64,
    /// Values of inputs that are the same in every run.
    pub given: Vec<GivenInput>,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All steps are done.
    Finished,
    /// The held-out loss did not improve any more (early stopping).
    Early,
    /// The loss of a step was not finite.
    NotFinite,
}

/// The result of a run. The model has the parameters of the best check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tuned {
    /// Number of trained tensors.
    pub tensors: usize,
    /// Number of their elements.
    pub elements: usize,
    /// Whether weights of the original were asked for, and only factors of the rewrite could be trained.
    pub factors_alone: bool,
    /// Number of positions within which sequences were placed; 0 if all started at position 0, because the model
    /// computes positions itself, those of all tokens or those of rebuilt keys.
    pub positions: usize,
    /// The peak learning rate.
    pub rate: f64,
    /// Mean loss of each step, in nats.
    pub losses: Vec<f64>,
    /// Losses on the held-out text; the first is that before training.
    pub checks: Vec<Check>,
    /// The check whose state is kept.
    pub best: Check,
    /// Why it ended.
    pub ended: Ended,
    /// Steps that an interrupted run had done and that were not repeated.
    pub resumed_at: usize,
}

/// The progress of a run.
#[derive(Debug, Clone, Copy)]
pub struct TrainProgress {
    /// Steps done.
    pub step: usize,
    /// Largest number of steps.
    pub steps: usize,
    /// Loss of the last step, in nats.
    pub loss: Option<f64>,
    /// The best held-out loss so far.
    pub best: Option<f64>,
}

/// The highest learning rate that is chosen for a run, and the lowest.
const RATES: (f64, f64) = (5e-3, 5e-4);
/// The KL, in nats, from which on a distillation takes the highest rate. Where less is lost, a step of this rate loses more
/// than it gains; so the rate falls with the square root of the KL, as the distance to the best factors does. Measured:
/// 5e-3 is right at 0.3 nats and too high at 0.05 and 0.012, where 2e-3 is right.
const HIGHEST_RATE_FROM: f64 = 0.3;
/// Number of checks of a run, in addition to the one before the first step.
const CHECKS: usize = 8;

/// Trains `model` on `samples`: with a `teacher`, to match its next-token distribution
/// ([`gqa2mla_train::loss::distillation`]), without one, to predict the next token
/// ([`gqa2mla_train::loss::next_token`]). The trained initializers are replaced by those of the best check, rounded to
/// their type; if no check is better than the start, they are not changed.
///
/// The state is saved to `partial` at every check, and a run with the same models, sequences and options resumes from there.
/// The result is deterministic.
///
/// # Errors
/// [`TuneError`]. Errors of models and options are found before the first step. `model` is unchanged then.
pub fn tune(
    model: &mut LoadedModel,
    teacher: Option<&LoadedModel>,
    samples: &Samples,
    options: &TuneOptions,
    partial: &Path,
    progress: &mut dyn FnMut(TrainProgress),
) -> Result<Tuned, TuneError> {
    let path = model.path.display().to_string();
    let graph = lowered(model)?.fed(model, &options.given)?;
    let trained = select(
        &graph.main,
        &graph.sources,
        &graph.interface.logits,
        options.trainable,
    );
    let trained = of_all_steps(&model.model, trained);
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
                Trainable::Layers => "no weight of a product was found: are they quantized?",
            }
            .to_owned(),
        });
    }
    let first = samples.train.first().map(|sample| &*sample.tokens);
    let first = first.unwrap_or_default();
    let student = Decoder::new(model, &graph, &trained)?;
    let settings = settings(model, teacher, samples, options)?;
    let original = teacher;
    if let Some(teacher) = teacher {
        check_branches(teacher, first, &options.given)?;
    }
    // A rewrite leaves prompts to a branch without latents, if it is asked to; then the original's branches are compared alone.
    if exact_tokens(&model.model.proto) == ExactTokens::None {
        check_branches(model, first, &options.given)?;
    }
    let teacher = match teacher {
        Some(teacher) => {
            let graph = lowered(teacher)?.fed(teacher, &options.given)?;
            Some(Decoder::new(teacher, &graph, &[])?)
        }
        None => None,
    };
    let positions = match graph.places_sequences() {
        true => options.context,
        false => 0,
    };
    let caches = |decoder: &Decoder| decoder.has_caches();
    let in_chunks = !samples.answers && caches(&student) && teacher.as_ref().is_none_or(caches);
    let run = TrainRun {
        student,
        trainable: options.trainable,
        teacher,
        samples,
        context: positions,
        chunk: match in_chunks {
            true => options.chunk,
            false => samples.longest(),
        },
        batch: options.batch,
        seed: options.seed,
    };
    let parameters = run.student.program.parameters().iter();
    let shapes: Vec<&[usize]> = parameters.map(|p| p.dims.as_slice()).collect();
    let mut state = match checkpoint::load(partial, &settings, &shapes) {
        Some(state) => state,
        None => {
            let initial = stored::initializers(&model.model, &graph.main, &trained);
            let initial = initial.map_err(|cause| run.student.failed(cause))?;
            run.fresh(initial)?
        }
    };
    let resumed_at = state.course.steps;
    // All weights have been read.
    model.let_go();
    if let Some(teacher) = original {
        teacher.let_go();
    }
    if state.course.checks.is_empty() {
        let first = run.check(&mut state)?;
        if !first.is_finite() {
            return Err(TuneError::NotFinite { path });
        }
    }
    // A run resumes at the start of a sequence: what was read of one is not in the checkpoint.
    let every = options.steps.div_ceil(CHECKS).next_multiple_of(run.round());
    let first = state
        .course
        .checks
        .first()
        .map_or(f64::NAN, |check| check.loss);
    let rate = options.rate.unwrap_or(match &run.teacher {
        Some(_) => (RATES.0 * (first / HIGHEST_RATE_FROM).sqrt()).clamp(RATES.1, RATES.0),
        None => RATES.0,
    });
    let descent = AdamOptions::new(options.steps, rate);
    let mut ended = Ended::Finished;
    let mut pasts = Vec::new();
    while state.course.steps < options.steps {
        progress(moment(&state.course, options));
        if state.course.is_stuck() {
            ended = Ended::Early;
            break;
        }
        let (loss, grads) = run.step(&state, &mut pasts)?;
        let norm = adamw::step(&mut state.tensors, grads, &descent, state.course.steps);
        let norm = norm.map_err(|e| run.student.failed(e.into()))?;
        if !loss.is_finite() || !norm.is_finite() {
            ended = Ended::NotFinite;
            break;
        }
        state.course.steps += 1;
        state.course.losses.push(loss);
        if state.course.steps % every == 0 || state.course.steps == options.steps {
            // The next step starts another sequence.
            pasts.clear();
            run.check(&mut state)?;
            checkpoint::save(&state, &settings, partial)?;
        }
    }
    progress(moment(&state.course, options));
    let best = state.course.best().unwrap_or(Check {
        step: 0,
        loss: f64::NAN,
        right: None,
    });
    if best.step > 0 {
        write_back(model, &trained, &state.best)
            .map_err(|cause| TuneError::Program { path, cause })?;
    }
    Ok(Tuned {
        tensors: trained.len(),
        elements: state.best.iter().map(Tensor::elem_count).sum(),
        factors_alone: options.trainable != Trainable::Factors && are_factors_alone(&trained),
        positions,
        rate,
        losses: state.course.losses,
        checks: state.course.checks,
        best,
        ended,
        resumed_at,
    })
}

/// A text that identifies models, sequences and options. A run resumes only from a checkpoint with an equal text.
fn settings(
    model: &LoadedModel,
    teacher: Option<&LoadedModel>,
    samples: &Samples,
    options: &TuneOptions,
) -> Result<String, TuneError> {
    let mut hasher = crc32fast::Hasher::new();
    for sample in samples.train.iter().chain(&samples.held_out) {
        hasher.update(&sample.tokens.len().to_le_bytes());
        hasher.update(&sample.counted.start.to_le_bytes());
        sample
            .tokens
            .iter()
            .for_each(|id| hasher.update(&id.to_le_bytes()));
    }
    let teacher = teacher
        .map(|teacher| identity(&teacher.model))
        .transpose()?;
    Ok(format!(
        "{} {teacher:?} {:08x} {options:?}",
        identity(&model.model)?,
        hasher.finalize()
    ))
}

/// Replaces the initializers `names` by `values`.
fn write_back(
    model: &mut LoadedModel,
    names: &[String],
    values: &[Tensor],
) -> Result<(), TrainError> {
    let mut graph = model.model.proto.graph.take().unwrap_or_default();
    let written = names.iter().zip(values).try_for_each(|(name, values)| {
        let tensor = graph.initializer.iter_mut().find(|t| t.name() == name);
        let tensor = tensor.ok_or_else(|| TrainError::NoParameter(name.clone()))?;
        read(values, |values| stored::write(tensor, values))?
    });
    model.model.proto.graph = Some(graph);
    written
}

fn moment(course: &Course, options: &TuneOptions) -> TrainProgress {
    TrainProgress {
        step: course.steps,
        steps: options.steps,
        loss: course.losses.last().copied(),
        best: course.best().map(|best| best.loss),
    }
}
