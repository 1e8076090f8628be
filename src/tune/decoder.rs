//! A model for training: its graph of primitives, compiled for the logits, and its inputs.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use gqa2mla_passes::analysis::Analysis;
use gqa2mla_passes::onnx::{GraphProto, NodeProto};
use gqa2mla_passes::operators::Target;
use gqa2mla_train::error::TrainError;
use gqa2mla_train::program::Program;

use crate::files::load::LoadedModel;
use crate::runtime::tensor::{Data, Tensor as Fed};
use crate::tune::TuneError;
use crate::tune::floats::in_floats;
use crate::tune::later_steps::{is_merged, later_steps};
use crate::validate::ValidateError;
use crate::validate::cache::{CacheKind, CachePort};
use crate::validate::feed::Moment;
use crate::validate::interface::Interface;
use crate::validate::port::Role;
use crate::validate::ports::LanguageModel;

/// Tokens of the check that logits do not depend on later tokens.
const SEVERAL: usize = 9;
/// The largest difference of logits of the same tokens in two runs, relative to the largest logit. Activations that are rounded
/// to 8 bits in the range of each run differ by 2e-2 with random weights; a mask that hides nothing changes logits by more than
/// their tenth.
const CAUSAL: f32 = 0.1;

/// The tokens of a sequence that a model has read, as it caches them; by default none.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// Their number.
    pub tokens: usize,
    /// The present outputs of the last run, in the order of the model's caches.
    caches: Vec<Tensor>,
}

/// A compiled decoder that processes a sequence in one run, or chunk by chunk.
#[derive(Debug)]
pub struct Decoder {
    /// The compiled program.
    pub program: Program,
    interface: Interface,
    path: String,
}

/// A graph without fused attention operators.
#[derive(Debug)]
pub struct TrainableGraph {
    /// The main graph, with attention functions inlined and attention operators expanded. Every token is read through the
    /// cache, also where the model has a branch for prompts.
    pub main: GraphProto,
    /// The new keys and values [B, G, T, size] of every recognised attention.
    pub sources: Vec<String>,
    /// The inputs and outputs. Caches of integers are in floating point.
    pub interface: Interface,
    /// Whether it is the branch with a past of a merged decoder.
    pub merged: bool,
    /// Whether keys are rebuilt from latents and rotated to the positions of their rows, counted from 0, whatever the position
    /// inputs are.
    pub counts_positions: bool,
}

impl TrainableGraph {
    /// What a step computes: the logits, and the present of every cache.
    fn outputs(&self) -> Vec<&str> {
        let presents = self.interface.caches.iter().map(|port| &*port.present);
        std::iter::once(&*self.interface.logits)
            .chain(presents)
            .collect()
    }

    /// Whether a sequence can be placed at any position of a context: its positions are an input, and determine the rotation
    /// of the keys.
    #[must_use]
    pub fn places_sequences(&self) -> bool {
        self.interface.has(Role::PositionIds) && !self.counts_positions
    }

    /// Whether only long sequences show it all positions: it computes them, and caches rotated keys. A model without a cache reads
    /// a sequence in one run, so that a long one would need too much memory.
    #[must_use]
    pub fn needs_long_sequences(&self) -> bool {
        let counts = !self.interface.has(Role::PositionIds) && !self.counts_positions;
        counts && !self.interface.caches.is_empty()
    }
}

/// The main graph of `model` with attention operators expanded into primitives.
///
/// # Errors
/// [`TuneError::Interface`] and [`TuneError::Analysis`].
pub fn lowered(model: &LoadedModel) -> Result<TrainableGraph, TuneError> {
    let path = model.path.display().to_string();
    let original = &model.model;
    let later = later_steps(original);
    let model = later.as_ref().unwrap_or(original);
    let floating = in_floats(model);
    let model = floating.as_ref().unwrap_or(model);
    let analysis = Analysis::of(model, Target::MatMul);
    let analysis = analysis.map_err(|cause| TuneError::Analysis {
        path: path.clone(),
        cause,
    })?;
    let seen = analysis.with_caches_in_order(&model.proto);
    let subject = LanguageModel::of(&seen);
    let subject = subject.map_err(|cause| TuneError::Interface {
        path: path.clone(),
        cause,
    })?;
    if subject
        .interface
        .caches
        .iter()
        .any(|cache| cache.kind == CacheKind::InPlace)
    {
        return Err(TuneError::Nothing {
            path,
            detail: "its caches are written in place, which training does not follow: rewrite the model with --cache-io append".to_owned(),
        });
    }
    let sides = analysis
        .sites
        .iter()
        .flat_map(|p| [&p.site.key, &p.site.value]);
    Ok(TrainableGraph {
        sources: sides.map(|side| side.new.clone()).collect(),
        merged: is_merged(original),
        counts_positions: analysis.main.node.iter().any(counts_positions),
        main: analysis.main,
        interface: subject.interface,
    })
}

/// Checks whether `model` can be read for training, as far as its operators tell.
///
/// # Errors
/// [`TuneError`] that names the first operator that is not implemented, and those of [`lowered`].
pub fn check_operators(model: &LoadedModel) -> Result<(), TuneError> {
    let graph = lowered(model)?;
    let checked = Program::check(&graph.main, &graph.outputs());
    checked.map_err(|cause| TuneError::Program {
        path: model.path.display().to_string(),
        cause,
    })
}

/// Whether `node` computes the positions of all cached rows, in a form that caches keys before rotation.
fn counts_positions(node: &NodeProto) -> bool {
    let name = node.name();
    name.contains("/mla") && name.ends_with("/positions/all")
}

impl Decoder {
    /// Compiles `graph`, the expanded graph of `model`, with the initializers `trained` as parameters.
    ///
    /// # Errors
    /// [`TuneError::Program`].
    pub fn new(
        model: &LoadedModel,
        graph: &TrainableGraph,
        trained: &[String],
    ) -> Result<Self, TuneError> {
        let path = model.path.display().to_string();
        let mut interface = graph.interface.clone();
        // The cache is empty, so its size does not matter.
        interface.close_open_axes(1);
        let program = Program::compile(&model.model, &graph.main, &graph.outputs(), trained);
        let program = program.map_err(|cause| TuneError::Program {
            path: path.clone(),
            cause,
        })?;
        Ok(Self {
            program,
            interface,
            path,
        })
    }

    /// Whether it has caches, so that it can read a sequence in chunks.
    #[must_use]
    pub fn has_caches(&self) -> bool {
        !self.interface.caches.is_empty()
    }

    /// The inputs of one run on `tokens`, which follow `past`. The first token of the sequence has the position `first`
    /// if the model has position inputs, and else 0.
    ///
    /// # Errors
    /// [`TuneError::Interface`].
    pub fn inputs(
        &self,
        tokens: &[i64],
        first: usize,
        past: &Past,
    ) -> Result<BTreeMap<String, Tensor>, TuneError> {
        let fed = self.feeds(tokens, first, past.tokens);
        let fed = fed.map_err(|cause| TuneError::Interface {
            path: self.path.clone(),
            cause,
        })?;
        let tensors = fed.into_iter().map(|(name, fed)| Ok((name, tensor(fed)?)));
        let tensors = tensors.collect::<candle_core::Result<BTreeMap<_, _>>>();
        let mut tensors = tensors.map_err(|cause| self.failed(cause.into()))?;
        let ports = self.interface.caches.iter().zip(&past.caches);
        tensors.extend(ports.map(|(port, cached)| (port.past.clone(), cached.clone())));
        Ok(tensors)
    }

    fn feeds(
        &self,
        tokens: &[i64],
        first: usize,
        past: usize,
    ) -> Result<Vec<(String, Fed)>, ValidateError> {
        if past == 0 {
            self.interface.check_empty_past()?;
        }
        let empty = |cache: &CachePort| {
            let shape = cache.shape(1, 0).unwrap_or_default();
            Ok(Fed::zeros(cache.element, shape)?)
        };
        let caches = self.interface.caches.iter().map(empty);
        let moment = Moment {
            pads: &[0],
            past,
            length: tokens.len(),
            tokens,
        };
        let caches = caches.collect::<Result<_, ValidateError>>()?;
        let mut feeds = moment.feeds(&self.interface, caches)?;
        let shift = i64::try_from(first).unwrap_or(0);
        let inputs = self.interface.inputs.iter();
        for input in inputs.filter(|input| input.role == Role::PositionIds) {
            let positions = feeds.iter_mut().find(|(name, _)| *name == input.name);
            match positions.map(|(_, fed)| &mut fed.data) {
                Some(Data::I64(values)) => values.iter_mut().for_each(|p| *p += shift),
                Some(Data::I32(values)) => values.iter_mut().for_each(|p| *p += shift as i32),
                _ => {}
            }
        }
        Ok(feeds)
    }

    /// What the model has read after a run on `tokens` further tokens that gave `outputs`.
    #[must_use]
    pub fn after(&self, past: &Past, tokens: usize, outputs: &[Tensor]) -> Past {
        Past {
            tokens: past.tokens + tokens,
            caches: outputs.get(1..).unwrap_or_default().to_vec(),
        }
    }

    /// The logits [T, V] of `tokens`, which follow `past`, for the given values of the `parameters`, and what the model has
    /// read then. The first token of the sequence has the position `first`.
    ///
    /// # Errors
    /// As [`Decoder::inputs`], and [`TuneError::Program`].
    pub fn logits(
        &self,
        tokens: &[i64],
        first: usize,
        past: &Past,
        parameters: &[Tensor],
    ) -> Result<(Tensor, Past), TuneError> {
        let inputs = self.inputs(tokens, first, past)?;
        let outputs = self.program.evaluate(&inputs, parameters);
        let outputs = outputs.map_err(|cause| self.failed(cause))?;
        let logits = self.rows(outputs.first())?;
        Ok((logits, self.after(past, tokens.len(), &outputs)))
    }

    /// Checks that the first logits do not depend on later tokens.
    ///
    /// # Errors
    /// [`TuneError::SeesLater`] if they do, and those of [`Decoder::logits`].
    pub fn check_causal(&self, tokens: &[i64], parameters: &[Tensor]) -> Result<(), TuneError> {
        let read = |count: usize| -> Result<Tensor, TuneError> {
            let tokens = tokens.get(..count).unwrap_or_default();
            let (rows, _) = self.logits(tokens, 0, &Past::default(), parameters)?;
            Ok(rows)
        };
        let many = tokens.len().min(SEVERAL);
        if many < 2 {
            return Ok(());
        }
        let largest = |t: &Tensor| -> candle_core::Result<f32> {
            t.abs()?.flatten_all()?.max(0)?.to_scalar()
        };
        let apart = |first: &Tensor, all: &Tensor| -> candle_core::Result<(f32, f32)> {
            let same = all.narrow(0, 0, first.dim(0)?)?;
            Ok((largest(&(first - same)?)?, largest(first)?))
        };
        let (first, all) = (read(many - 1)?, read(many)?);
        let (apart, whole) = apart(&first, &all).map_err(|e| self.failed(e.into()))?;
        match apart > CAUSAL * whole {
            true => Err(TuneError::SeesLater {
                path: self.path.clone(),
            }),
            false => Ok(()),
        }
    }

    /// The output `logits` as [T, V].
    ///
    /// # Errors
    /// [`TuneError::Program`].
    pub fn rows(&self, logits: Option<&Tensor>) -> Result<Tensor, TuneError> {
        let rows = || {
            let logits =
                logits.ok_or_else(|| TrainError::NoValue(self.interface.logits.clone()))?;
            let width = logits.dims().last().copied().unwrap_or(0);
            Ok(logits.reshape(((), width))?)
        };
        rows().map_err(|cause| self.failed(cause))
    }

    /// The error `cause` with the path of this model.
    #[must_use]
    pub fn failed(&self, cause: TrainError) -> TuneError {
        TuneError::Program {
            path: self.path.clone(),
            cause,
        }
    }
}

/// An input tensor converted for training: floats to fp32, integers to i64, booleans to u8.
fn tensor(fed: Fed) -> candle_core::Result<Tensor> {
    let (shape, device) = (fed.shape.clone(), &Device::Cpu);
    match fed.data {
        Data::I64(values) => Tensor::from_vec(values, shape, device),
        Data::I32(values) => {
            let values: Vec<i64> = values.into_iter().map(i64::from).collect();
            Tensor::from_vec(values, shape, device)
        }
        Data::Bool(values) => {
            let values: Vec<u8> = values.into_iter().map(u8::from).collect();
            Tensor::from_vec(values, shape, device)
        }
        _ => Tensor::from_vec(fed.to_f32(), shape, device),
    }
}
