//! A benchmarked model, opened once and run with the inputs of each phase.

use std::time::Instant;

use crate::bench::error::BenchError;
use crate::bench::phase::{BenchRequest, Io, Phase};
use crate::bench::shared::in_place;
use crate::files::load::LoadedModel;
use crate::runtime::tensor::Tensor;
use crate::runtime::{BoundRun, OrtSession, Provider, Session, open_ort};
use crate::validate::ValidateError;
use crate::validate::cache::{CacheKind, CachePort};
use crate::validate::feed::{Moment, bounded};
use crate::validate::interface::Interface;
use crate::validate::ports::LanguageModel;
use crate::validate::runner::closed_by_trying;
use crate::validate::scenario::Random;

/// An opened model.
pub struct BenchModel {
    path: String,
    session: OrtSession,
    interface: Interface,
    vocabulary: u64,
    /// Pairs of past and present that share a buffer.
    in_place: Vec<(String, String)>,
    io: Io,
    provider: Provider,
}

impl BenchModel {
    /// Opens `model` with the options of `request`.
    ///
    /// # Errors
    /// [`BenchError::Open`].
    pub fn open(model: &LoadedModel, request: &BenchRequest) -> Result<Self, BenchError> {
        let failed = BenchError::open(&model.path);
        let described = LanguageModel::of(&model.model.proto).map_err(&failed)?;
        let mut session =
            open_ort(&model.path, &request.runtime).map_err(BenchError::open(&model.path))?;
        let interface = closed_by_trying(&mut session, &described.interface).map_err(failed)?;
        let provider = request.runtime.provider;
        let in_place = match (request.io, provider) {
            // Shared buffers are allocated in CPU memory.
            (Io::Shared, Provider::Cpu) => in_place(&model.model.proto, &interface),
            _ => Vec::new(),
        };
        let io = match request.io {
            Io::Shared if in_place.is_empty() => Io::Bound,
            io => io,
        };
        Ok(Self {
            path: model.path.display().to_string(),
            session,
            vocabulary: described.vocabulary.max(1) as u64,
            interface,
            in_place,
            io,
            provider,
        })
    }

    /// The model file.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// How its caches are passed from one run to the next.
    pub fn io(&self) -> Io {
        self.io
    }

    /// The runtime, its version and its settings.
    pub fn runtime(&self) -> String {
        self.session.describe()
    }

    /// Bytes per token and row of its caches.
    pub fn cache_bytes(&self) -> usize {
        let growing = self.interface.caches.iter();
        let growing = growing.filter(|cache| cache.length_axis.is_some());
        let bytes = growing.map(|cache| {
            let shape = cache.shape(1, 1).unwrap_or_default();
            shape.iter().product::<usize>() * cache.element.byte_size()
        });
        bytes.sum()
    }

    /// Refuses a phase that the model cannot run.
    ///
    /// # Errors
    /// [`BenchError::NoCache`], [`BenchError::Length`] or [`BenchError::Batch`].
    pub fn check(&self, phase: Phase) -> Result<(), BenchError> {
        if !phase.is_prefill() && self.interface.caches.is_empty() {
            return Err(BenchError::NoCache {
                path: self.path.clone(),
            });
        }
        if let Some(fixed) = self.interface.fixed_length().filter(|&n| n != phase.tokens) {
            return Err(BenchError::Length {
                path: self.path.clone(),
                fixed,
                asked: phase.tokens,
            });
        }
        match self.interface.fixed_batch {
            Some(fixed) if fixed != phase.batch => Err(BenchError::Batch {
                path: self.path.clone(),
                fixed,
                asked: phase.batch,
            }),
            _ => Ok(()),
        }
    }

    /// The model with the inputs of `phase`.
    ///
    /// # Errors
    /// [`BenchError::Run`].
    pub fn fed(&mut self, phase: Phase) -> Result<Fed<'_>, BenchError> {
        let feeds = self.feeds(phase).map_err(BenchError::run(phase))?;
        let run = match self.io {
            Io::Copied => Run::Copied(&mut self.session, feeds),
            Io::Bound | Io::Shared => {
                let bound = self.session.bind(&feeds, &self.in_place, self.provider);
                Run::Bound(Box::new(bound.map_err(BenchError::run(phase))?))
            }
        };
        Ok(Fed { phase, run })
    }

    /// Every input of one run. Caches hold zeros, because times do not depend on their content.
    fn feeds(&self, phase: Phase) -> Result<Vec<(String, Tensor)>, ValidateError> {
        let caches = self.interface.caches.iter();
        let caches = caches.map(|cache| self.cache(cache, phase));
        let caches = caches.collect::<Result<_, _>>()?;
        bounded("tokens", &[phase.batch, phase.tokens])?;
        let mut random = Random::new(0);
        let drawn = (0..phase.batch * phase.tokens).map(|_| random.next_u64() % self.vocabulary);
        let tokens: Vec<i64> = drawn.map(|id| i64::try_from(id).unwrap_or(0)).collect();
        bounded("pads", &[phase.batch])?;
        let moment = Moment {
            pads: &vec![0; phase.batch],
            past: phase.past,
            length: phase.tokens,
            tokens: &tokens,
        };
        moment.feeds(&self.interface, caches)
    }

    /// A past of zeros. If the operator shares its buffer with the present, it has the length of the present. Pasts
    /// that the graph writes in place and static caches are extended by [`Moment::feeds`].
    fn cache(&self, cache: &CachePort, phase: Phase) -> Result<Tensor, ValidateError> {
        let shares = self.in_place.iter().any(|(past, _)| *past == cache.past);
        let length = match (shares && cache.kind == CacheKind::Growing, cache.window()) {
            (true, _) => phase.past.saturating_add(phase.tokens),
            (false, Some(rows)) => rows,
            (false, None) => phase.past,
        };
        let shape = cache.shape(phase.batch, length).ok_or_else(|| {
            ValidateError::Interface(format!(
                "cache {} has an axis of unknown extent",
                cache.past
            ))
        })?;
        bounded(&cache.past, &shape)?;
        Ok(Tensor::zeros(cache.element, shape)?)
    }
}

/// A model with the inputs of one phase.
pub struct Fed<'s> {
    phase: Phase,
    run: Run<'s>,
}

enum Run<'s> {
    Copied(&'s mut OrtSession, Vec<(String, Tensor)>),
    Bound(Box<BoundRun<'s>>),
}

impl Fed<'_> {
    /// Runs the model once. Returns the time in milliseconds.
    ///
    /// # Errors
    /// [`BenchError::Run`].
    pub fn time(&mut self) -> Result<f64, BenchError> {
        let failed = BenchError::run(self.phase);
        let milliseconds = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
        match &mut self.run {
            Run::Copied(session, feeds) => {
                let started = Instant::now();
                session.run(feeds).map_err(failed)?;
                Ok(milliseconds(started))
            }
            Run::Bound(bound) => {
                bound.release().map_err(&failed)?;
                let started = Instant::now();
                bound.run().map_err(failed)?;
                Ok(milliseconds(started))
            }
        }
    }
}
