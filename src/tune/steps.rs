//! The steps and checks of a training run: losses and gradients of sequences.

use candle_core::{Device, Tensor};
use gqa2mla_train::adamw::Trained;
use gqa2mla_train::error::TrainError;
use gqa2mla_train::loss::{self, Loss};

use crate::tune::TuneError;
use crate::tune::checkpoint::TrainingState;
use crate::tune::course::{Check, Course};
use crate::tune::decoder::Decoder;
use crate::tune::samples::{Sample, Samples};
use crate::validate::scenario::Random;

/// Models and sequences of a run.
pub struct TrainRun<'s> {
    /// The model in training.
    pub student: Decoder,
    /// The teacher of a distillation, if there is one.
    pub teacher: Option<Decoder>,
    /// The sequences.
    pub samples: &'s Samples,
    /// Target context length in tokens: sequences are placed at random positions within it.
    pub context: usize,
    /// Number of sequences per step.
    pub batch: usize,
    /// Seed of the order of sequences.
    pub seed: u64,
}

impl TrainRun<'_> {
    /// The state before the first step.
    ///
    /// # Errors
    /// [`TuneError::Program`].
    pub fn fresh(&self) -> Result<TrainingState, TuneError> {
        let mut tensors = Vec::new();
        for parameter in self.student.program.parameters() {
            let values = parameter.initial.flatten_all().and_then(|t| t.to_vec1());
            tensors.push(Trained::new(
                values.map_err(|e| self.student.failed(e.into()))?,
            ));
        }
        Ok(TrainingState {
            best: tensors.iter().map(|t| t.values.clone()).collect(),
            tensors,
            course: Course::default(),
        })
    }

    /// The trained tensors as inputs of the program.
    fn parameters(&self, state: &TrainingState) -> Result<Vec<Tensor>, TuneError> {
        let parameters = self.student.program.parameters().iter().zip(&state.tensors);
        let tensors = parameters.map(|(parameter, tensor)| {
            Tensor::from_slice(&tensor.values, parameter.initial.dims(), &Device::Cpu)
        });
        tensors
            .collect::<Result<_, _>>()
            .map_err(|e| self.student.failed(e.into()))
    }

    /// The loss of the student's `logits` on `sample`, whose first token has the position `place`.
    fn loss(&self, sample: &Sample, place: usize, logits: &Tensor) -> Result<Loss, TuneError> {
        let Sample { tokens, counted } = sample;
        let failed = |cause| self.student.failed(cause);
        match &self.teacher {
            Some(teacher) => {
                let target = teacher.logits(tokens, place, &[])?;
                let counted: Vec<bool> =
                    (0..tokens.len()).map(|at| counted.contains(&at)).collect();
                loss::distillation(&target, logits, &counted).map_err(failed)
            }
            None => {
                let targets = tokens.get(1..).unwrap_or_default();
                let counts = |at: usize| counted.contains(&at) && at < targets.len();
                let counted: Vec<bool> = (0..tokens.len()).map(counts).collect();
                loss::next_token(logits, targets, &counted).map_err(failed)
            }
        }
    }

    /// Whether every counted token of `sample` is the most probable one.
    fn is_right(&self, sample: &Sample, logits: &Tensor) -> Result<bool, TuneError> {
        let chosen = logits.argmax(1).and_then(|ids| ids.to_vec1::<u32>());
        let chosen = chosen.map_err(|e| self.student.failed(e.into()))?;
        Ok(sample.counted.clone().all(|at| {
            let (chosen, next) = (chosen.get(at), sample.tokens.get(at + 1));
            chosen.is_some() && chosen.map(|&id| i64::from(id)) == next.copied()
        }))
    }

    /// Computes the mean loss on the held-out sequences, and records the state as the best one if it has improved.
    ///
    /// # Errors
    /// [`TuneError::Program`] and [`TuneError::Interface`].
    pub fn check(&self, state: &mut TrainingState) -> Result<f64, TuneError> {
        let parameters = self.parameters(state)?;
        let mut losses = Vec::new();
        let mut right = 0;
        let held_out = &self.samples.held_out;
        // The sequences are placed at evenly spaced positions, the first one at position 0.
        let apart = self.places() / held_out.len().max(1);
        for (number, sample) in held_out.iter().enumerate() {
            let place = number * apart;
            let logits = self.student.logits(&sample.tokens, place, &parameters)?;
            losses.push(self.loss(sample, place, &logits)?.mean);
            if self.samples.answers {
                right += usize::from(self.is_right(sample, &logits)?);
            }
        }
        let count = losses.len().max(1) as f64;
        let loss = losses.iter().sum::<f64>() / count;
        if state.course.best().is_none_or(|best| loss < best.loss) {
            state.best = state.tensors.iter().map(|t| t.values.clone()).collect();
        }
        state.course.checks.push(Check {
            step: state.course.steps,
            loss,
            right: self.samples.answers.then_some(right as f64 / count),
        });
        Ok(loss)
    }

    /// The mean loss of the next batch, and its gradient with respect to every trained tensor.
    ///
    /// # Errors
    /// [`TuneError::Program`] and [`TuneError::Interface`].
    pub fn step(&self, state: &TrainingState) -> Result<(f64, Vec<Vec<f32>>), TuneError> {
        let parameters = self.parameters(state)?;
        let batch = self.batch.max(1);
        let mut mean = 0.0;
        let mut sums: Vec<Vec<f32>> = Vec::new();
        let failed = |cause: TrainError| self.student.failed(cause);
        for number in 0..batch {
            let at = state.course.steps * batch + number;
            let Some(sample) = self.sample(at) else {
                continue;
            };
            let place = self.place(at);
            let inputs = self.student.inputs(&sample.tokens, place)?;
            let trace = self
                .student
                .program
                .trace(&inputs, &parameters)
                .map_err(failed)?;
            let logits = self.student.rows(trace.outputs.first())?;
            let loss = self.loss(sample, place, &logits)?;
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

    /// The number of positions at which a sequence can start.
    fn places(&self) -> usize {
        self.context.saturating_sub(self.samples.longest()) + 1
    }

    /// The start position of sequence `number` of a run.
    fn place(&self, number: usize) -> usize {
        let seed = self.seed.wrapping_add(number as u64);
        // The seed differs from that of the order of the sequences.
        let mut random = Random::new(seed ^ 0x5bd1_e995_9d1d_9c4d);
        (random.next_u64() % self.places() as u64) as usize
    }

    /// Sequence `number` of a run: each epoch has all sequences in a random order that depends on the seed.
    fn sample(&self, number: usize) -> Option<&Sample> {
        let count = self.samples.train.len().max(1);
        let (round, at) = ((number / count) as u64, number % count);
        let mut random = Random::new(self.seed.wrapping_add(round << 32));
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, (random.next_u64() % (last as u64 + 1)) as usize);
        }
        self.samples.train.get(*order.get(at)?)
    }
}
