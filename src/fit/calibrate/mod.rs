//! Runs a model on text and keeps sums of what its attentions work on.
//!
//! The model is the original with other outputs: queries, keys, values and the probability that positions receive. Each
//! sequence is read at once from an empty cache, and only its own activations are in memory.

pub mod store;

use std::collections::BTreeMap;
use std::path::Path;

use crate::files::tensors::ArraysError;
use gqa2mla_passes::analysis::observe::{ObserveError, Observed, ObservedLayer, Quantity, observe};
use gqa2mla_passes::analysis::{Analysis, AnalysisError};
use gqa2mla_passes::factor::Statistics;
use gqa2mla_passes::factor::statistics::Activations;
use gqa2mla_passes::onnx::stored::TensorError;
use gqa2mla_passes::recognize::rotation::Rotated;
use ndarray::{ArrayView2, ArrayView3};
use prost::Message;

use crate::files::identity::identity;
use crate::files::load::LoadedModel;
use crate::fit::statistics::ModelStatistics;
use crate::measure::text::Text;
use crate::runtime::tensor::Tensor;
use crate::runtime::{RuntimeError, RuntimeOptions, Session, open_messages};
use crate::validate::ValidateError;
use crate::validate::interface::Interface;
use crate::validate::ports::LanguageModel;
use crate::validate::prompt::{closed, feeds};

/// Why there are no statistics.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// Nothing to look at.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The model is not well-formed.
    #[error(transparent)]
    Analysis(#[from] AnalysisError),
    /// The model's interface.
    #[error(transparent)]
    Interface(#[from] ValidateError),
    /// ONNX Runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A weight.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The statistics file.
    #[error(transparent)]
    Store(#[from] ArraysError),
    /// The model gave something else than was asked for.
    #[error(
        "layer {layer}: the model gives {quantity:?} of shape {found:?}, expected {expected:?}"
    )]
    Shape {
        /// The layer.
        layer: usize,
        /// What was asked for.
        quantity: Quantity,
        /// What came.
        found: Vec<usize>,
        /// What had to come.
        expected: Vec<usize>,
    },
    /// NaN or infinity.
    #[error(
        "layer {layer}: queries, keys or values are not finite in sequence {sequence}: the model overflows on this text"
    )]
    NotFinite {
        /// The layer.
        layer: usize,
        /// Which sequence, from 0.
        sequence: usize,
    },
}

/// What statistics need to see.
const QUANTITIES: [Quantity; 6] = [
    Quantity::Query,
    Quantity::Key,
    Quantity::Value,
    Quantity::Unrotated,
    Quantity::Received,
    Quantity::ReceivedSquared,
];

/// A model, and what was recognised in it.
#[derive(Clone, Copy)]
pub struct Analyzed<'m> {
    /// The model.
    pub model: &'m LoadedModel,
    /// Its analysis, whichever target its operators were spelled out for.
    pub analysis: &'m Analysis,
}

/// A model that can be watched while it reads.
pub struct Watched {
    session: Box<dyn Session>,
    interface: Interface,
    /// The attentions, with the names under which the session shows them.
    pub layers: Vec<ObservedLayer>,
}

impl Watched {
    /// Opens `subject` with `quantities` as its outputs.
    ///
    /// # Errors
    /// [`CalibrateError`] when no attention is recognised or ONNX Runtime refuses.
    pub fn open(
        subject: Analyzed,
        quantities: &[Quantity],
        runtime: &RuntimeOptions,
    ) -> Result<Self, CalibrateError> {
        let Analyzed { model, analysis } = subject;
        let interface = LanguageModel::of(&model.model.proto)?.interface;
        let Observed { proto, layers } = observe(&model.model, analysis, quantities)?;
        let session = open_messages(&proto.encode_to_vec(), &model.path, runtime)?;
        let widths = layers.iter().filter_map(|layer| {
            let cache = |side: &gqa2mla_passes::recognize::site::Side| {
                let past = side.cache.as_ref()?.past.clone()?;
                Some((past, [layer.site.kv_heads, side.size]))
            };
            Some([cache(&layer.site.key)?, cache(&layer.site.value)?])
        });
        let widths = widths.flatten().collect();
        Ok(Self {
            session,
            interface: closed(interface, &widths),
            layers,
        })
    }

    /// Reads `tokens` from an empty cache; returns every output by name.
    ///
    /// # Errors
    /// [`CalibrateError`] when the model cannot be run.
    pub fn read(&mut self, tokens: &[i64]) -> Result<BTreeMap<String, Tensor>, CalibrateError> {
        let inputs = feeds(&self.interface, tokens)?;
        Ok(self.session.run(&inputs)?.into_iter().collect())
    }
}

/// One quantity of one layer, without the batch axis of one.
///
/// # Errors
/// [`CalibrateError::Shape`] when it is absent or of another shape than `[1]` and `expected`.
pub fn shown<'t>(
    layer: &ObservedLayer,
    outputs: &'t BTreeMap<String, Tensor>,
    quantity: Quantity,
    expected: &[usize],
) -> Result<std::borrow::Cow<'t, [f32]>, CalibrateError> {
    let wanted: Vec<usize> = std::iter::once(1).chain(expected.iter().copied()).collect();
    let tensor = layer
        .outputs
        .get(&quantity)
        .and_then(|name| outputs.get(name));
    match tensor {
        Some(tensor) if tensor.shape == wanted => Ok(tensor.floats()),
        other => Err(CalibrateError::Shape {
            layer: layer.site.layer,
            quantity,
            found: other.map(|t| t.shape.clone()).unwrap_or_default(),
            expected: wanted,
        }),
    }
}

/// Reads `text` with `subject` and sums up. With `partial`, the sums are kept in that file after every sequence, and a
/// run that finds it there goes on from its last sequence. `progress` is told how many sequences of how many are read.
///
/// # Errors
/// [`CalibrateError`]; nothing is written but the partial file.
pub fn calibrate(
    subject: Analyzed,
    text: &Text,
    runtime: &RuntimeOptions,
    partial: Option<&Path>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<ModelStatistics, CalibrateError> {
    let mut watched = Watched::open(subject, &QUANTITIES, runtime)?;
    let empty = |layer: &ObservedLayer| {
        let site = &layer.site;
        let unrotated = layer.outputs.contains_key(&Quantity::Unrotated);
        let (d, dv) = (site.key.size, site.value.size);
        let sums = Statistics::new(site.heads, site.kv_heads, d, dv, unrotated);
        (layer.id.clone(), sums.expecting(layer.rope.clone()))
    };
    let mut sums = ModelStatistics {
        model: identity(&subject.model.model)?,
        text: checksum(text),
        sequences: 0,
        length: text.length,
        layers: watched.layers.iter().map(empty).collect(),
    };
    if let Some(before) = partial.and_then(|path| store::load(path).ok())
        && before.continues(&sums)
    {
        sums = before;
    }
    let total = text.sequences().len();
    for (number, tokens) in text.sequences().enumerate().skip(sums.sequences) {
        progress(number, total);
        let outputs = watched.read(tokens)?;
        for layer in &watched.layers {
            if let Some(sums) = sums.layers.get_mut(&layer.id) {
                add(sums, layer, &outputs, tokens.len())?;
                if !sums.is_finite() {
                    return Err(CalibrateError::NotFinite {
                        layer: layer.site.layer,
                        sequence: number,
                    });
                }
            }
        }
        sums.sequences = number + 1;
        if let Some(path) = partial.filter(|_| number + 1 < total) {
            store::save(&sums, path)?;
        }
    }
    progress(total, total);
    Ok(sums)
}

fn checksum(text: &Text) -> String {
    let mut hasher = crc32fast::Hasher::new();
    text.ids
        .iter()
        .for_each(|id| hasher.update(&id.to_le_bytes()));
    format!("{:08x}-{}", hasher.finalize(), text.ids.len())
}

/// Keys before rotation, [T, G*d], where the layer shows them.
///
/// # Errors
/// [`CalibrateError::Shape`] when they are of another shape.
pub fn unrotated(
    layer: &ObservedLayer,
    outputs: &BTreeMap<String, Tensor>,
    length: usize,
) -> Result<Option<Vec<f32>>, CalibrateError> {
    let (g, d) = (layer.site.kv_heads, layer.site.key.size);
    if !layer.outputs.contains_key(&Quantity::Unrotated) {
        return Ok(None);
    }
    if let Rotated::By(rotation) = &layer.rotated
        && rotation.packed
    {
        let rows = shown(layer, outputs, Quantity::Unrotated, &[length, g * d])?;
        return Ok(Some(rows.into_owned()));
    }
    let heads = shown(layer, outputs, Quantity::Unrotated, &[g, length, d])?;
    Ok(Some(by_token(&heads, g, length, d)))
}

/// [G, T, d] as [T, G*d].
#[must_use]
pub fn by_token(heads: &[f32], count: usize, length: usize, size: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(heads.len());
    for token in 0..length {
        for head in 0..count {
            let at = (head * length + token) * size;
            rows.extend_from_slice(heads.get(at..at + size).unwrap_or_default());
        }
    }
    rows
}

fn add(
    sums: &mut Statistics,
    layer: &ObservedLayer,
    outputs: &BTreeMap<String, Tensor>,
    length: usize,
) -> Result<(), CalibrateError> {
    let site = &layer.site;
    let (h, g, d, dv) = (site.heads, site.kv_heads, site.key.size, site.value.size);
    let get = |quantity, shape: &[usize]| shown(layer, outputs, quantity, shape);
    let queries = get(Quantity::Query, &[h, length, d])?;
    let keys = get(Quantity::Key, &[g, length, d])?;
    let values = get(Quantity::Value, &[g, length, dv])?;
    let unrotated = unrotated(layer, outputs, length)?;
    let received = get(Quantity::Received, &[h, length])?;
    let squared = get(Quantity::ReceivedSquared, &[h, length])?;
    let views = (
        ArrayView3::from_shape((h, length, d), &queries),
        ArrayView3::from_shape((g, length, d), &keys),
        ArrayView3::from_shape((g, length, dv), &values),
        ArrayView2::from_shape((h, length), &received),
        ArrayView2::from_shape((h, length), &squared),
    );
    // The shapes were checked as the tensors came in.
    if let (Ok(queries), Ok(keys), Ok(values), Ok(received), Ok(received_squared)) = views {
        let unrotated = unrotated
            .as_ref()
            .and_then(|rows| ArrayView2::from_shape((length, g * d), rows).ok());
        sums.add(&Activations {
            queries,
            keys,
            values,
            unrotated,
            received,
            received_squared,
        });
    }
    Ok(())
}
