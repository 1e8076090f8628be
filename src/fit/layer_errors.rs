//! How far the attentions of two running models are apart, layer by layer.
//!
//! Both read the same tokens, each with its own earlier layers: an error here includes what the layers before have lost.

use std::collections::BTreeMap;

use gqa2mla_passes::analysis::observe::{ObservedLayer, Quantity};
use gqa2mla_passes::onnx::ValueInfoProto;
use prost::Message;
use serde::Serialize;

use crate::files::load::LoadedModel;
use crate::fit::calibrate::{Analyzed, CalibrateError, Watched};
use crate::runtime::tensor::Tensor;
use crate::runtime::{RuntimeOptions, open_messages};
use crate::validate::ports::LanguageModel;
use crate::validate::prompt::feeds;

/// Tokens that are read: scores of all layers and heads are in memory together.
const TOKENS: usize = 256;

/// Relative errors of one attention, in the root mean square.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerError {
    /// The layer.
    pub layer: usize,
    /// Of the scores that a query can see, about their mean where the softmax ignores it; `None` where the rewritten
    /// model has no scores, because an operator makes and uses them.
    pub scores: Option<f64>,
    /// Of the outputs of the heads.
    pub outputs: Option<f64>,
}

/// Reads the first tokens of `tokens` with both models.
///
/// # Errors
/// [`CalibrateError`] when a model cannot be run in ONNX Runtime.
pub fn layer_errors(
    original: Analyzed,
    rewritten: &LoadedModel,
    tokens: &[i64],
    runtime: &RuntimeOptions,
) -> Result<Vec<LayerError>, CalibrateError> {
    let tokens = tokens.get(..TOKENS.min(tokens.len())).unwrap_or_default();
    let quantities = [Quantity::Scores, Quantity::Output];
    let mut watched = Watched::open(original, &quantities, runtime)?;
    let before = watched.read(tokens)?;
    let after = same_values(rewritten, &watched.layers, tokens, runtime)?;
    let errors = watched.layers.iter().map(|layer| {
        let pair = |quantity, value: &str| {
            let name = layer.outputs.get(&quantity)?;
            Some((before.get(name)?.floats(), after.get(value)?.floats()))
        };
        let shifts = layer.scoring.is_some_and(|s| s.ignores_shifts());
        let scores = pair(Quantity::Scores, &layer.score);
        let outputs = pair(Quantity::Output, &layer.output);
        LayerError {
            layer: layer.site.layer,
            scores: scores.map(|(a, b)| score_error(&a, &b, tokens.len(), shifts)),
            outputs: outputs.map(|(a, b)| relative(&a, &b)),
        }
    });
    Ok(errors.collect())
}

/// The score products and head outputs of the rewritten model, which keep their names.
fn same_values(
    rewritten: &LoadedModel,
    layers: &[ObservedLayer],
    tokens: &[i64],
    runtime: &RuntimeOptions,
) -> Result<BTreeMap<String, Tensor>, CalibrateError> {
    let interface = LanguageModel::of(&rewritten.model.proto)?.interface;
    let mut proto = rewritten.model.proto.clone();
    if let Some(graph) = &mut proto.graph {
        let made: Vec<&String> = graph.node.iter().flat_map(|n| &n.output).collect();
        let wanted = layers.iter().flat_map(|l| [&l.score, &l.output]);
        let outputs: Vec<ValueInfoProto> = wanted
            .filter(|name| made.contains(name))
            .map(|name| ValueInfoProto {
                name: Some(name.clone()),
                ..ValueInfoProto::default()
            })
            .collect();
        graph.output.extend(outputs);
    }
    let mut session = open_messages(&proto.encode_to_vec(), &rewritten.path, runtime)?;
    let inputs = feeds(&interface, tokens)?;
    Ok(session.run(&inputs)?.into_iter().collect())
}

/// Over the positions up to each query's own: those after it are masked. With `shifts`, a constant in the scores of a
/// query is no error.
fn score_error(a: &[f32], b: &[f32], length: usize, shifts: bool) -> f64 {
    let (mut off, mut whole) = (0.0, 0.0);
    let rows = a.chunks(length.max(1)).zip(b.chunks(length.max(1)));
    for (row, (a, b)) in rows.enumerate() {
        let seen = row % length.max(1) + 1;
        let pairs = || {
            a.iter()
                .zip(b)
                .take(seen)
                .map(|(x, y)| (f64::from(*x), f64::from(*y)))
        };
        let mean = |of: &dyn Fn((f64, f64)) -> f64| match shifts {
            true => pairs().map(of).sum::<f64>() / seen as f64,
            false => 0.0,
        };
        let (ma, mb) = (mean(&|(x, _)| x), mean(&|(_, y)| y));
        for (x, y) in pairs() {
            let (x, y) = (x - ma, y - mb);
            off += (x - y) * (x - y);
            whole += x * x;
        }
    }
    ratio(off, whole)
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let (mut off, mut whole) = (0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (f64::from(*x), f64::from(*y));
        off += (x - y) * (x - y);
        whole += x * x;
    }
    ratio(off, whole)
}

fn ratio(off: f64, whole: f64) -> f64 {
    if whole > 0.0 {
        (off / whole).sqrt()
    } else {
        off.sqrt()
    }
}
