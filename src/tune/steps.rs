//! The steps and checks of a training run: losses and gradients of sequences.

use candle_core::Tensor;
use gqa2mla_train::adamw::Trained;
use gqa2mla_train::error::TrainError;
use gqa2mla_train::loss::{self, Loss};

use crate::tune::TuneError;
use crate::tune::checkpoint::TrainingState;
use crate::tune::course::{Check, Course};
use crate::tune::decoder::{Decoder, Past};
use crate::tune::samples::{Sample, Samples};
use crate::tune::select::Trainable;
use crate::validate::scenario::Random;

/// Models and sequences of a run.
pub struct TrainRun<'s> {
    /// The model in training.
    pub student: Decoder,
    /// The tensors that are trained.
    pub trainable: Trainable,
    /// The teacher of a distillation, if there is one.
    pub teacher: Option<Decoder>,
    /// The sequences.
    pub samples: &'s Samples,
    /// Target context length in tokens: sequences are placed at random positions within it.
    pub context: usize,
    /// Largest number of tokens of a sequence that a step reads: the steps of a longer sequence follow each other, and each
    /// reads the tokens before its chunk from the cache, without a gradient.
    pub chunk: usize,
    /// Number of sequences per step.
    pub batch: usize,
    /// Seed of the order of sequences.
    pub seed: u64,
}

/// What both models have read of a sequence.
#[derive(Debug, Clone, Default)]
pub struct Pasts {
    student: Past,
    teacher: Past,
}

/// Some successive tokens of a sequence.
struct Chunk<'s> {
    tokens: &'s [i64],
    /// The tokens that the positions predict, as far as the sequence has them.
    next: &'s [i64],
    /// Whether each position is in the loss.
    counted: Vec<bool>,
    /// The position of the first token of the sequence.
    place: usize,
}

impl Chunk<'_> {
    /// Whether any position is in the loss.
    fn counts(&self) -> bool {
        self.counted.contains(&true)
    }
}

impl TrainRun<'_> {
    /// The state before the first step, with the trained tensors `initial`.
    ///
    /// # Errors
    /// [`TuneError::Program`].
    pub fn fresh(&self, initial: Vec<Tensor>) -> Result<TrainingState, TuneError> {
        let parameters = self.student.program.parameters().iter();
        let tensors = parameters
            .zip(initial)
            .map(|(parameter, values)| Trained::new(values, self.trainable.share(&parameter.name)))
            .collect::<candle_core::Result<Vec<_>>>();
        let tensors = tensors.map_err(|e| self.student.failed(e.into()))?;
        Ok(TrainingState {
            best: tensors.iter().map(|t| t.values.clone()).collect(),
            tensors,
            course: Course::default(),
        })
    }

    /// The loss of the student's `logits` on `chunk`, and its gradient; `None` if no position counts. The teacher reads the
    /// chunk after `past`.
    fn loss(
        &self,
        chunk: &Chunk,
        logits: &Tensor,
        past: &mut Past,
    ) -> Result<Option<Loss>, TuneError> {
        let target = match &self.teacher {
            Some(teacher) => {
                let (target, read) = teacher.logits(chunk.tokens, chunk.place, past, &[])?;
                *past = read;
                Some(target)
            }
            None => None,
        };
        if !chunk.counts() {
            return Ok(None);
        }
        let loss = match target {
            Some(target) => loss::distillation(&target, logits, &chunk.counted),
            None => loss::next_token(logits, chunk.next, &chunk.counted),
        };
        Ok(Some(loss.map_err(|cause| self.student.failed(cause))?))
    }

    /// Whether every counted token of `chunk` is the most probable one.
    fn is_right(&self, chunk: &Chunk, logits: &Tensor) -> Result<bool, TuneError> {
        let chosen = logits.argmax(1).and_then(|ids| ids.to_vec1::<u32>());
        let chosen = chosen.map_err(|e| self.student.failed(e.into()))?;
        let mut counted = chunk
            .counted
            .iter()
            .enumerate()
            .filter(|(_, counts)| **counts);
        Ok(counted.all(|(at, _)| {
            let (chosen, next) = (chosen.get(at), chunk.next.get(at));
            chosen.is_some() && chosen.map(|&id| i64::from(id)) == next.copied()
        }))
    }

    /// Computes the mean loss on the held-out sequences, and records the state as the best one if it has improved.
    ///
    /// # Errors
    /// [`TuneError::Program`] and [`TuneError::Interface`].
    pub fn check(&self, state: &mut TrainingState) -> Result<f64, TuneError> {
        let parameters = state.parameters();
        let (mut sum, mut count) = (0.0, 0);
        let mut right = 0;
        let held_out = &self.samples.held_out;
        // The sequences are placed at evenly spaced positions, the first one at position 0.
        let apart = self.places() / held_out.len().max(1);
        for (number, sample) in held_out.iter().enumerate() {
            let mut pasts = Pasts::default();
            let mut all_right = self.samples.answers;
            for part in 0..self.chunks(sample) {
                let chunk = self.chunk(sample, part, number * apart);
                let student = &self.student;
                let (logits, read) =
                    student.logits(chunk.tokens, chunk.place, &pasts.student, &parameters)?;
                pasts.student = read;
                let Some(loss) = self.loss(&chunk, &logits, &mut pasts.teacher)? else {
                    continue;
                };
                let counted = chunk.counted.iter().filter(|counts| **counts).count();
                sum += loss.mean * counted as f64;
                count += counted;
                all_right = all_right && self.is_right(&chunk, &logits)?;
            }
            right += usize::from(all_right);
        }
        let loss = sum / count.max(1) as f64;
        if state.course.best().is_none_or(|best| loss < best.loss) {
            state.best = parameters;
        }
        let share = right as f64 / held_out.len().max(1) as f64;
        state.course.checks.push(Check {
            step: state.course.steps,
            loss,
            right: self.samples.answers.then_some(share),
        });
        Ok(loss)
    }

    /// The mean loss of the next batch, and its gradient with respect to every trained tensor. `pasts` has what the models
    /// have read of each sequence of the batch; at the start of a sequence it is not read.
    ///
    /// # Errors
    /// [`TuneError::Program`] and [`TuneError::Interface`].
    pub fn step(
        &self,
        state: &TrainingState,
        pasts: &mut Vec<Pasts>,
    ) -> Result<(f64, Vec<Tensor>), TuneError> {
        let parameters = state.parameters();
        let batch = self.batch.max(1);
        let (sequence, part) = (
            state.course.steps / self.round(),
            state.course.steps % self.round(),
        );
        pasts.resize_with(batch, Pasts::default);
        let mut mean = 0.0;
        let mut sums: Vec<Tensor> = Vec::new();
        let failed = |cause: TrainError| self.student.failed(cause);
        for (number, past) in pasts.iter_mut().enumerate() {
            let at = sequence * batch + number;
            let Some(sample) = self.sample(at) else {
                continue;
            };
            if part == 0 {
                *past = Pasts::default();
            }
            let chunk = self.chunk(sample, part, self.place(at));
            let inputs = self
                .student
                .inputs(chunk.tokens, chunk.place, &past.student)?;
            let trace = self
                .student
                .program
                .trace(&inputs, &parameters)
                .map_err(failed)?;
            let logits = self.student.rows(trace.outputs.first())?;
            past.student = self
                .student
                .after(&past.student, chunk.tokens.len(), &trace.outputs);
            let Some(loss) = self.loss(&chunk, &logits, &mut past.teacher)? else {
                continue;
            };
            drop(logits);
            mean += loss.mean / batch as f64;
            let shape = trace.outputs.first().map_or(&[][..], Tensor::dims);
            let grad = loss.grad.reshape(shape).map_err(|e| failed(e.into()))?;
            let grads = trace.backward(vec![grad]).map_err(failed)?;
            sums = match batch {
                1 => grads,
                _ => added(sums, grads, 1.0 / batch as f64).map_err(|e| failed(e.into()))?,
            };
        }
        Ok((mean, sums))
    }

    /// Chunk `number` of `sample`, whose first token has the position `place`.
    fn chunk<'s>(&self, sample: &'s Sample, number: usize, place: usize) -> Chunk<'s> {
        let all = sample.tokens.as_slice();
        let start = (number * self.chunk).min(all.len());
        let end = (start + self.chunk).min(all.len());
        // A teacher predicts what follows the last token; the text does not.
        let predicted = all.len() - usize::from(self.teacher.is_none());
        let counts = |at: usize| sample.counted.contains(&at) && at < predicted;
        Chunk {
            tokens: all.get(start..end).unwrap_or_default(),
            next: all
                .get(start + 1..all.len().min(end + 1))
                .unwrap_or_default(),
            counted: (start..end).map(counts).collect(),
            place,
        }
    }

    /// The number of chunks of `sample`.
    fn chunks(&self, sample: &Sample) -> usize {
        sample.tokens.len().div_ceil(self.chunk.max(1)).max(1)
    }

    /// The number of steps of a sequence. All sequences that are longer than a chunk have one length.
    #[must_use]
    pub fn round(&self) -> usize {
        self.samples
            .train
            .first()
            .map_or(1, |first| self.chunks(first))
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

/// `sums` plus `share` times `grads`, tensor by tensor; `sums` is empty before the first sequence of a batch.
fn added(sums: Vec<Tensor>, grads: Vec<Tensor>, share: f64) -> candle_core::Result<Vec<Tensor>> {
    let mut sums = sums.into_iter();
    let sum = |grad: Tensor| match sums.next() {
        Some(sum) => sum + (grad * share)?,
        None => grad * share,
    };
    grads.into_iter().map(sum).collect()
}
