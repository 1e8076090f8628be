//! A model for training: its graph of primitives, compiled for the logits, and its inputs.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use gqa2mla_passes::analysis::Analysis;
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::onnx::{GraphProto, NodeProto};
use gqa2mla_passes::operators::Target;
use gqa2mla_train::error::TrainError;
use gqa2mla_train::program::Program;

use crate::files::load::LoadedModel;
use crate::runtime::given::GivenInput;
use crate::runtime::tensor::{Data, Tensor as Fed};
use crate::tune::TuneError;
use crate::tune::floats::in_floats;
use crate::tune::later_steps::{later_steps, without_a_past};
use crate::validate::ValidateError;
use crate::validate::cache::{CacheKind, CachePort};
use crate::validate::feed::Moment;
use crate::validate::interface::Interface;
use crate::validate::port::Role;
use crate::validate::ports::LanguageModel;

/// Tokens of the comparison of branches.
const SEVERAL: usize = 16;
/// The largest difference of the logits of two branches, relative to the largest logit. Both are computed in fp32 from the same
/// weights, and differ by rounding alone where they compute the same; a branch that sees later tokens is off by percents.
const SAME: f32 = 1e-3;

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
    /// Whether keys are rebuilt from latents and rotated to the positions of their rows, counted from 0, whatever the position
    /// inputs are.
    pub counts_positions: bool,
}

impl TrainableGraph {
    /// The same graph of `model` with the values `given` for the inputs that they name.
    ///
    /// # Errors
    /// [`TuneError::Interface`] if the model has no such input.
    pub fn fed(self, model: &LoadedModel, given: &[GivenInput]) -> Result<Self, TuneError> {
        let interface = self.interface.fed(given);
        let interface = interface.map_err(|cause| TuneError::Interface {
            path: model.path.display().to_string(),
            cause,
        })?;
        Ok(Self { interface, ..self })
    }

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
    let later = later_steps(&model.model);
    expanded(&model.path, later.as_ref().unwrap_or(&model.model))
}

fn expanded(path: &Path, model: &Model) -> Result<TrainableGraph, TuneError> {
    let path = path.display().to_string();
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
        counts_positions: analysis.main.node.iter().any(counts_positions),
        main: analysis.main,
        interface: subject.interface,
    })
}

/// Checks whether `model` can be read for training, as far as its graph tells, with the initializers `trained`.
///
/// # Errors
/// [`TuneError`] that names the first operator that is not implemented, and those of [`lowered`].
pub fn check_operators(
    model: &LoadedModel,
    graph: &TrainableGraph,
    trained: &[String],
) -> Result<(), TuneError> {
    let checked = Program::check(&graph.main, &graph.outputs(), trained);
    checked.map_err(|cause| TuneError::Program {
        path: model.path.display().to_string(),
        cause,
    })
}

/// Checks that both branches of a merged decoder give the same logits of the first of `tokens` without a past: a branch with a past
/// that is made for one token at a time, or for an encoder-decoder, does not. Other models pass.
///
/// # Errors
/// [`TuneError::Branches`] if they differ, and those of running the model.
pub fn check_branches(
    model: &LoadedModel,
    tokens: &[i64],
    given: &[GivenInput],
) -> Result<(), TuneError> {
    let Some(first) = without_a_past(&model.model) else {
        return Ok(());
    };
    let tokens = tokens.get(..SEVERAL.min(tokens.len())).unwrap_or_default();
    let read = |graph: TrainableGraph| -> Result<Tensor, TuneError> {
        let decoder = Decoder::new(model, &graph.fed(model, given)?, &[])?;
        Ok(decoder.logits(tokens, 0, &Past::default(), &[])?.0)
    };
    let (first, later) = (
        read(expanded(&model.path, &first)?)?,
        read(lowered(model)?)?,
    );
    let largest =
        |t: &Tensor| -> candle_core::Result<f32> { t.abs()?.flatten_all()?.max(0)?.to_scalar() };
    let compared = || Ok((largest(&(&first - &later)?)?, largest(&first)?));
    let path = || model.path.display().to_string();
    let (apart, whole) = compared().map_err(|cause: candle_core::Error| TuneError::Program {
        path: path(),
        cause: cause.into(),
    })?;
    match apart <= SAME * whole {
        true => Ok(()),
        false => Err(TuneError::Branches { path: path() }),
    }
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
