//! Calibration: runs a model on text and sums up statistics of its attentions.
//!
//! The model is instrumented to return queries, keys, values and attention probabilities per position. Each sequence is
//! one run with an empty cache, and only its activations are in memory.

pub mod store;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::files::tensors::ArraysError;
use gqa2mla_passes::analysis::observe::{ObserveError, Observed, ObservedLayer, Quantity, observe};
use gqa2mla_passes::analysis::{Analysis, AnalysisError};
use gqa2mla_passes::factor::Statistics;
use gqa2mla_passes::factor::statistics::Activations;
use gqa2mla_passes::onnx::stored::TensorError;
use gqa2mla_passes::recognize::rotation::Rotated;
use gqa2mla_passes::recognize::site::Side;
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

/// The error of a calibration.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The model cannot be instrumented.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The model is malformed.
    #[error(transparent)]
    Analysis(#[from] AnalysisError),
    /// The model's inputs or outputs are not those of a language model.
    #[error(transparent)]
    Interface(#[from] ValidateError),
    /// ONNX Runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A weight could not be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The statistics file could not be written.
    #[error(transparent)]
    Store(#[from] ArraysError),
    /// A model output does not have the expected shape.
    #[error(
        "layer {layer}: the model gives {quantity:?} of shape {found:?}, expected {expected:?}"
    )]
    Shape {
        /// The layer.
        layer: usize,
        /// The requested quantity.
        quantity: Quantity,
        /// The shape of the output.
        found: Vec<usize>,
        /// The expected shape.
        expected: Vec<usize>,
    },
    /// An activation is NaN or infinite.
    #[error(
        "layer {layer}: queries, keys or values are not finite in sequence {sequence}: the model overflows on this text"
    )]
    NotFinite {
        /// The layer.
        layer: usize,
        /// Number of the sequence, from 0.
        sequence: usize,
    },
}

/// The quantities that statistics need.
const QUANTITIES: [Quantity; 6] = [
    Quantity::Query,
    Quantity::Key,
    Quantity::Value,
    Quantity::Unrotated,
    Quantity::Received,
    Quantity::ReceivedSquared,
];

/// A model and its analysis.
#[derive(Clone, Copy)]
pub struct Analyzed<'m> {
    /// The model.
    pub model: &'m LoadedModel,
    /// Its analysis, for any target.
    pub analysis: &'m Analysis,
}

/// A session of an instrumented model.
pub struct Watched {
    session: Box<dyn Session>,
    interface: Interface,
    /// The attentions, with the names of their outputs.
    pub layers: Vec<ObservedLayer>,
}

impl Watched {
    /// Instruments `subject` to return `quantities`, and opens it.
    ///
    /// # Errors
    /// [`CalibrateError`] if no attention is recognised or the model cannot be loaded.
    pub fn open(
        subject: Analyzed,
        quantities: &[Quantity],
        runtime: &RuntimeOptions,
    ) -> Result<Self, CalibrateError> {
        let Analyzed { model, analysis } = subject;
        let seen = analysis.with_caches_in_order(&model.model.proto);
        let interface = LanguageModel::of(&seen)?.fed(&runtime.given)?.interface;
        let Observed { proto, layers } = observe(&model.model, analysis, quantities)?;
        let session = open_messages(&proto.encode_to_vec(), &model.path, runtime)?;
        Ok(Self {
            session,
            interface: closed(interface, &widths(&layers)),
            layers,
        })
    }

    /// Runs the model on `tokens` with an empty cache; returns all outputs by name.
    ///
    /// # Errors
    /// [`CalibrateError`] if the model cannot be run.
    pub fn read(&mut self, tokens: &[i64]) -> Result<BTreeMap<String, Tensor>, CalibrateError> {
        let inputs = feeds(&self.interface, tokens)?;
        Ok(self.session.run(&inputs)?.into_iter().collect())
    }
}

/// Heads and head size of the caches of `layers`, by the name of the past.
#[must_use]
pub fn widths(layers: &[ObservedLayer]) -> HashMap<String, [usize; 2]> {
    let widths = layers.iter().filter_map(|layer| {
        let cache = |side: &Side| {
            let past = side.cache.as_ref()?.past.clone()?;
            Some((past, [layer.site.kv_heads, side.size]))
        };
        Some([cache(&layer.site.key)?, cache(&layer.site.value)?])
    });
    widths.flatten().collect()
}

/// One quantity of one layer, without the batch axis of one. Of a static cache only the rows that tokens are written to
/// are returned.
///
/// # Errors
/// [`CalibrateError::Shape`] if it is missing, or its shape is not `[1]` followed by `expected`.
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
    let rows = tensor.and_then(|tensor| match tensor.shape.as_slice() {
        shape if shape == wanted => Some(tensor.floats()),
        [outer @ .., all] if layer.site.has_static_cache() => {
            let (written, expected) = wanted.split_last()?;
            let of_all = tensor.to_f32();
            let of_written = of_all
                .chunks(*all)
                .flat_map(|row| row.iter().take(*written));
            (outer == expected && all > written).then(|| of_written.copied().collect())
        }
        _ => None,
    });
    rows.ok_or_else(|| CalibrateError::Shape {
        layer: layer.site.layer,
        quantity,
        found: tensor.map(|t| t.shape.clone()).unwrap_or_default(),
        expected: wanted.clone(),
    })
}

/// Computes the statistics of `subject` on `text`. With `partial`, the sums are saved to this file after every
/// sequence, and a later run with the same inputs resumes from it. `progress` is called with (done, total) tokens.
///
/// # Errors
/// [`CalibrateError`]. Only the partial file may have been written then.
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
        let heads = layer.reading_heads().heads();
        let sums = Statistics::new(heads, site.kv_heads, d, dv, unrotated);
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
    let total = text.ids.len();
    for (number, tokens) in text.sequences().enumerate().skip(sums.sequences) {
        progress(number * text.length, total);
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

/// A checksum of the token ids of `text`, and their number.
#[must_use]
pub fn checksum(text: &Text) -> String {
    let mut hasher = crc32fast::Hasher::new();
    text.ids
        .iter()
        .for_each(|id| hasher.update(&id.to_le_bytes()));
    format!("{:08x}-{}", hasher.finalize(), text.ids.len())
}

/// Unrotated keys [T, G*d] of a layer; `None` if they are not available.
///
/// # Errors
/// [`CalibrateError::Shape`] if they have another shape.
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

/// One quantity of all query heads that read the cache of `layer`, [ΣH, `length`] followed by `rest`, in the order of
/// [`ObservedLayer::reading_heads`].
fn of_readers(
    layer: &ObservedLayer,
    outputs: &BTreeMap<String, Tensor>,
    quantity: Quantity,
    (length, size): (usize, usize),
    rest: &[usize],
) -> Result<Vec<f32>, CalibrateError> {
    let rows = layer.readers().map(|reader| {
        let shape = [&[reader.site.heads, length], rest].concat();
        shown(reader, outputs, quantity, &shape)
    });
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    let head = length * size;
    let readers = layer.reading_heads();
    let heads = readers
        .in_order()
        .filter_map(|(reader, number)| rows.get(reader)?.get(number * head..(number + 1) * head));
    Ok(heads.flatten().copied().collect())
}

fn add(
    sums: &mut Statistics,
    layer: &ObservedLayer,
    outputs: &BTreeMap<String, Tensor>,
    length: usize,
) -> Result<(), CalibrateError> {
    let site = &layer.site;
    let (g, d, dv) = (site.kv_heads, site.key.size, site.value.size);
    let h = layer.reading_heads().heads();
    let get = |quantity, shape: &[usize]| shown(layer, outputs, quantity, shape);
    let of_heads = |quantity, rest: &[usize]| {
        let size = rest.iter().product();
        of_readers(layer, outputs, quantity, (length, size), rest)
    };
    let queries = of_heads(Quantity::Query, &[d])?;
    let keys = get(Quantity::Key, &[g, length, d])?;
    let values = get(Quantity::Value, &[g, length, dv])?;
    let unrotated = unrotated(layer, outputs, length)?;
    let received = of_heads(Quantity::Received, &[])?;
    let squared = of_heads(Quantity::ReceivedSquared, &[])?;
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
