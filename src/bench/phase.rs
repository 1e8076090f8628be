//! The options of a benchmark: past lengths, prefill lengths, batch sizes, and how caches are passed from run to run.

use std::fmt;

use gqa2mla_passes::numbers::counted;
use serde::Serialize;

use crate::runtime::RuntimeOptions;

/// A prefill takes as long as hundreds of decode steps, and its times vary less, so that it gets the number of rounds
/// divided by this.
const ROUNDS_OF_A_PREFILL: usize = 4;

/// One kind of run: `tokens` new tokens in each of `batch` rows, after `past` cached tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// Batch size.
    pub batch: usize,
    /// Number of cached tokens, `P`; 0 for a prefill.
    pub past: usize,
    /// Number of new tokens per row, `T`; 1 for a decode step.
    pub tokens: usize,
}

impl Phase {
    /// Whether this is a prefill, not a decode step.
    #[must_use]
    pub fn is_prefill(&self) -> bool {
        self.past == 0
    }

    /// The number of rounds of this phase, if decode steps have `rounds`.
    #[must_use]
    pub fn rounds(&self, rounds: usize) -> usize {
        match self.is_prefill() {
            true => rounds.div_ceil(ROUNDS_OF_A_PREFILL),
            false => rounds,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_prefill() {
            true => write!(out, "prefill of {}", counted(self.tokens, "token"))?,
            false => write!(out, "decode step at {}", counted(self.past, "past token"))?,
        }
        write!(out, ", batch of {}", self.batch)
    }
}

/// How caches are passed from one run to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Io {
    /// Past and present of a cache are bound to one buffer if the model or its operator writes in place; other caches are
    /// bound as by [`Io::Bound`].
    #[default]
    Shared,
    /// Inputs and outputs are bound: the present of a run becomes the past of the next one without a copy outside the
    /// model.
    Bound,
    /// Every output is copied into memory of the caller.
    Copied,
}

/// The options of a benchmark.
#[derive(Debug, Clone)]
pub struct BenchRequest {
    /// Past lengths of the decode steps.
    pub past: Vec<usize>,
    /// Lengths of the prefills.
    pub prefill: Vec<usize>,
    /// Batch sizes; every length is measured at each of them.
    pub batches: Vec<usize>,
    /// Number of rounds of each decode length, at least 1; a prefill has a quarter of them.
    pub rounds: usize,
    /// How caches are passed from one run to the next.
    pub io: Io,
    /// The runtime and its options.
    pub runtime: RuntimeOptions,
}

impl BenchRequest {
    /// Every phase, in the order in which it runs.
    #[must_use]
    pub fn phases(&self) -> Vec<Phase> {
        let decode = self.past.iter().map(|&past| (past, 1));
        let prefill = self.prefill.iter().map(|&tokens| (0, tokens));
        let lengths: Vec<(usize, usize)> = decode.chain(prefill).collect();
        let of_batch = |&batch: &usize| {
            let phase = move |&(past, tokens): &(usize, usize)| Phase {
                batch,
                past,
                tokens,
            };
            lengths.iter().map(phase).collect::<Vec<_>>()
        };
        self.batches.iter().flat_map(of_batch).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{BenchRequest, Phase};
    use crate::bench::Io;
    use crate::runtime::RuntimeOptions;

    #[test]
    fn every_batch_runs_every_length_and_a_prefill_a_fourth_of_the_rounds() {
        let request = BenchRequest {
            past: vec![512, 2048],
            prefill: vec![64],
            batches: vec![1, 4],
            rounds: 10,
            io: Io::Shared,
            runtime: RuntimeOptions::default(),
        };
        let phases = request.phases();
        let shown = phases
            .iter()
            .map(|p| (p.batch, p.past, p.tokens, p.rounds(10)));
        assert_eq!(
            shown.collect::<Vec<_>>(),
            [
                (1, 512, 1, 10),
                (1, 2048, 1, 10),
                (1, 0, 64, 3),
                (4, 512, 1, 10),
                (4, 2048, 1, 10),
                (4, 0, 64, 3)
            ]
        );
        let prefill = Phase {
            batch: 4,
            past: 0,
            tokens: 64,
        };
        assert_eq!(prefill.to_string(), "prefill of 64 tokens, batch of 4");
    }
}
