//! A run: steps on the text, checks on its held-out part, the best state kept.

use std::path::Path;

use candle_core::{Device, Tensor};
use gqa2mla_train::adamw::{self, Descent, Trained};
use gqa2mla_train::error::TrainError;
use gqa2mla_train::loss::{self, Loss};
use gqa2mla_train::stored;
use serde::{Deserialize, Serialize};

use crate::files::identity::identity;
use crate::files::load::LoadedModel;
use crate::measure::text::Text;
use crate::tune::TuneError;
use crate::tune::checkpoint::{self, Course, State};
use crate::tune::decoder::{Decoder, spelled_out};
use crate::tune::select::{Trainable, select};
use crate::validate::scenario::Random;

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

/// Loss on the held-out text after some steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Steps done.
    pub step: usize,
    /// Mean loss, in nats.
    pub loss: f64,
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

/// Positions at the start of a sequence that do not count: with so little context a token can hardly be told.
const WITHOUT_CONTEXT: usize = 16;
/// Most tokens that are held out.
const HELD_OUT: usize = 4096;
/// Checks of a run, apart from the one before it.
const CHECKS: usize = 10;
/// Checks in a row without a better loss after which a run ends.
const PATIENCE: usize = 4;

/// Trains `model` on `text`: with a `teacher` to give its next-token distribution ([`loss::distillation`]), without one to
/// give the next token ([`loss::next_token`]). The trained initializers are replaced in place, in their own type, by those
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
    let mut run = Run {
        student,
        teacher,
        train,
        held_out,
        options,
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
        progress(state.course.progress(options));
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
    progress(state.course.progress(options));
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

impl Course {
    fn best(&self) -> Option<Check> {
        let finite = self.checks.iter().filter(|c| c.loss.is_finite());
        finite.copied().min_by(|a, b| a.loss.total_cmp(&b.loss))
    }

    /// Whether the last checks were all worse than one before them.
    fn is_stuck(&self) -> bool {
        let best = self.best().map(|best| best.step);
        let since = self
            .checks
            .iter()
            .rev()
            .take_while(|c| Some(c.step) != best);
        since.count() >= PATIENCE
    }

    fn progress(&self, options: &TuneOptions) -> Progress {
        Progress {
            step: self.steps,
            steps: options.steps,
            loss: self.losses.last().copied(),
            best: self.best().map(|best| best.loss),
        }
    }
}

/// Models and text of a run.
struct Run<'o> {
    student: Decoder,
    teacher: Option<Decoder>,
    train: Text,
    held_out: Text,
    options: &'o TuneOptions,
}

impl Run<'_> {
    fn fresh(&self) -> Result<State, TuneError> {
        let mut tensors = Vec::new();
        for parameter in self.student.program.parameters() {
            let values = parameter.initial.flatten_all().and_then(|t| t.to_vec1());
            tensors.push(Trained::new(
                values.map_err(|e| self.student.failed(e.into()))?,
            ));
        }
        Ok(State {
            best: tensors.iter().map(|t| t.values.clone()).collect(),
            tensors,
            course: Course::default(),
        })
    }

    /// The tensors in training, for the program.
    fn parameters(&self, state: &State) -> Result<Vec<Tensor>, TuneError> {
        let parameters = self.student.program.parameters().iter().zip(&state.tensors);
        let tensors = parameters.map(|(parameter, tensor)| {
            Tensor::from_slice(&tensor.values, parameter.initial.dims(), &Device::Cpu)
        });
        tensors
            .collect::<Result<_, _>>()
            .map_err(|e| self.student.failed(e.into()))
    }

    /// The loss of the student's `logits` on `tokens`.
    fn loss(&self, tokens: &[i64], logits: &Tensor) -> Result<Loss, TuneError> {
        let first = WITHOUT_CONTEXT.min(tokens.len() / 4);
        let failed = |cause| self.student.failed(cause);
        match &self.teacher {
            Some(teacher) => {
                let target = teacher.logits(tokens, &[])?;
                let counted: Vec<bool> = (0..tokens.len()).map(|at| at >= first).collect();
                loss::distillation(&target, logits, &counted).map_err(failed)
            }
            None => {
                let targets = tokens.get(1..).unwrap_or_default();
                let counts = |at: usize| at >= first && at < targets.len();
                let counted: Vec<bool> = (0..tokens.len()).map(counts).collect();
                loss::next_token(logits, targets, &counted).map_err(failed)
            }
        }
    }

    /// Mean loss on the held-out text. A better one than before keeps the state.
    fn check(&mut self, state: &mut State) -> Result<f64, TuneError> {
        let parameters = self.parameters(state)?;
        let mut losses = Vec::new();
        for tokens in self.held_out.sequences() {
            let logits = self.student.logits(tokens, &parameters)?;
            losses.push(self.loss(tokens, &logits)?.mean);
        }
        let loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        if state.course.best().is_none_or(|best| loss < best.loss) {
            state.best = state.tensors.iter().map(|t| t.values.clone()).collect();
        }
        state.course.checks.push(Check {
            step: state.course.steps,
            loss,
        });
        Ok(loss)
    }

    /// Mean loss of the next sequences, and its gradient by every trained tensor.
    fn step(&self, state: &State) -> Result<(f64, Vec<Vec<f32>>), TuneError> {
        let parameters = self.parameters(state)?;
        let batch = self.options.batch.max(1);
        let mut mean = 0.0;
        let mut sums: Vec<Vec<f32>> = Vec::new();
        let failed = |cause: TrainError| self.student.failed(cause);
        for number in 0..batch {
            let tokens = self.sequence(state.course.steps * batch + number);
            let inputs = self.student.inputs(tokens)?;
            let trace = self
                .student
                .program
                .trace(&inputs, &parameters)
                .map_err(failed)?;
            let logits = self.student.rows(trace.outputs.first())?;
            let loss = self.loss(tokens, &logits)?;
            mean += loss.mean / batch as f64;
            let shape = trace.outputs.first().map_or(&[][..], Tensor::dims);
            let grad = loss.grad.reshape(shape).map_err(|e| failed(e.into()))?;
            let grads = trace.backward(vec![grad]).map_err(failed)?;
            sums.resize_with(grads.len(), Vec::new);
            for (sum, grad) in sums.iter_mut().zip(grads) {
                let grad: Vec<f32> = grad
                    .flatten_all()
                    .and_then(|g| g.to_vec1())
                    .map_err(|e| failed(e.into()))?;
                sum.resize(grad.len(), 0.0);
                let share = 1.0 / batch as f32;
                sum.iter_mut()
                    .zip(grad)
                    .for_each(|(sum, grad)| *sum += share * grad);
            }
        }
        Ok((mean, sums))
    }

    /// Sequence `number` of a run: every sequence once in an order of the seed, then in another.
    fn sequence(&self, number: usize) -> &[i64] {
        let count = self.train.sequences().len().max(1);
        let (round, at) = ((number / count) as u64, number % count);
        let mut random = Random::new(self.options.seed.wrapping_add(round << 32));
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, (random.next_u64() % (last as u64 + 1)) as usize);
        }
        let chosen = order.get(at).copied().unwrap_or(0);
        self.train.sequences().nth(chosen).unwrap_or_default()
    }
}
