//! The benchmark of several models in rounds, each of which runs every model once.

use serde::Serialize;

use crate::bench::error::BenchError;
use crate::bench::model::{BenchModel, Fed};
use crate::bench::phase::{BenchRequest, Io, Phase};
use crate::bench::spread::Spread;
use crate::files::load::LoadedModel;

/// The result of a benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Benched {
    /// The runtime, its version and its settings.
    pub runtime: String,
    /// Threads that one operator may use; 0 is the runtime's choice.
    pub threads: usize,
    /// The models, in the order of the request.
    pub models: Vec<Measured>,
    /// The times of every phase.
    pub phases: Vec<Ran>,
}

/// A benchmarked model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The model file.
    pub model: String,
    /// How its caches are passed from one run to the next.
    pub io: Io,
    /// Bytes per token and row of its caches.
    pub cache_bytes_per_token: usize,
}

/// The times of one phase.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ran {
    /// The phase.
    #[serde(flatten)]
    pub phase: Phase,
    /// Number of rounds, each of which ran every model once.
    pub rounds: usize,
    /// The times of each model, in the order of the models.
    pub timings: Vec<Timing>,
}

/// The times of one model in one phase.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timing {
    /// Time of one run in milliseconds.
    pub milliseconds: Spread,
    /// The time divided by that of the first model in the same round.
    pub ratio: Spread,
}

/// Runs `models` through the phases of `request`. Each round runs every model once, starting with the next model of the
/// list. One round before the first is a warm-up and not counted. `progress` is called with (done, total) rounds.
///
/// # Errors
/// [`BenchError`] if a model cannot be opened, does not accept a phase, or fails.
pub fn bench(
    models: &[LoadedModel],
    request: &BenchRequest,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Benched, BenchError> {
    let phases = request.phases();
    if phases.is_empty() || models.is_empty() {
        return Err(BenchError::Nothing);
    }
    let opened = models.iter().map(|model| BenchModel::open(model, request));
    let mut subjects = opened.collect::<Result<Vec<_>, _>>()?;
    for subject in &subjects {
        for phase in &phases {
            subject.check(*phase)?;
        }
    }
    let total = phases.iter().map(|p| p.rounds(request.rounds)).sum();
    let mut done = 0;
    let mut ran = Vec::with_capacity(phases.len());
    for phase in phases {
        let rounds = phase.rounds(request.rounds);
        let fed = subjects.iter_mut().map(|subject| subject.fed(phase));
        let mut fed = fed.collect::<Result<Vec<_>, _>>()?;
        progress(done, total);
        in_turns(&mut fed, 0)?;
        let mut times = vec![Vec::with_capacity(rounds); fed.len()];
        for round in 0..rounds {
            progress(done, total);
            let round = in_turns(&mut fed, round)?;
            for (times, time) in times.iter_mut().zip(round) {
                times.push(time);
            }
            done += 1;
        }
        let timings = timings(&times).ok_or(BenchError::Nothing)?;
        ran.push(Ran {
            phase,
            rounds,
            timings,
        });
    }
    progress(total, total);
    let measured = subjects.iter().map(|subject| Measured {
        model: subject.path().to_owned(),
        io: subject.io(),
        cache_bytes_per_token: subject.cache_bytes(),
    });
    Ok(Benched {
        runtime: subjects
            .first()
            .map(BenchModel::runtime)
            .unwrap_or_default(),
        threads: request.runtime.threads,
        models: measured.collect(),
        phases: ran,
    })
}

/// Runs one round. Returns the time of each model in milliseconds.
fn in_turns(fed: &mut [Fed], round: usize) -> Result<Vec<f64>, BenchError> {
    let mut times = vec![0.0; fed.len()];
    for at in order(round, fed.len()) {
        if let (Some(model), Some(time)) = (fed.get_mut(at), times.get_mut(at)) {
            *time = model.time()?;
        }
    }
    Ok(times)
}

/// The order of `models` models in a round: every model once. Each round starts with another model, so that no model
/// always runs after the same other one, with the processor caches in the state that this leaves.
fn order(round: usize, models: usize) -> impl Iterator<Item = usize> {
    (0..models).map(move |turn| (round + turn) % models.max(1))
}

/// The times of every model and their ratios to the first one; `None` without a round.
fn timings(times: &[Vec<f64>]) -> Option<Vec<Timing>> {
    let first = times.first()?;
    let timing = |times: &Vec<f64>| {
        Some(Timing {
            milliseconds: Spread::of(times)?,
            ratio: Spread::of_ratios(times, first)?,
        })
    };
    times.iter().map(timing).collect()
}

#[cfg(test)]
mod tests {
    use super::{order, timings};

    #[test]
    fn every_round_runs_each_model_once_and_begins_with_another() {
        let of = |round| order(round, 3).collect::<Vec<_>>();
        assert_eq!(
            [of(0), of(1), of(2), of(3)],
            [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
        );
        assert_eq!(order(5, 1).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn ratios_are_to_the_first_model() {
        let timings = timings(&[vec![2.0, 4.0], vec![1.0, 6.0]]).unwrap();
        let shown = timings
            .iter()
            .map(|t| (t.milliseconds.median, t.ratio.median));
        assert_eq!(shown.collect::<Vec<_>>(), [(3.0, 1.0), (3.5, 1.0)]);
        assert_eq!((timings[1].ratio.min, timings[1].ratio.max), (0.5, 1.5));
        assert!(super::timings(&[vec![]]).is_none());
    }
}
