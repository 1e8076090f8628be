//! Measured errors of the attentions of a rewritten model, layer by layer.
//!
//! Both models run on the same tokens, so the error of a layer includes the errors of all earlier layers.

use std::collections::BTreeMap;

use gqa2mla_passes::analysis::observe::{ObservedLayer, Quantity};
use gqa2mla_passes::forms::ExactTokens;
use gqa2mla_passes::onnx::ValueInfoProto;
use prost::Message;
use serde::Serialize;

use crate::files::load::LoadedModel;
use crate::files::origin::exact_tokens;
use crate::fit::calibrate::{Analyzed, CalibrateError, Watched, widths};
use crate::runtime::tensor::Tensor;
use crate::runtime::{RuntimeOptions, open_messages};
use crate::validate::ports::LanguageModel;
use crate::validate::prompt::{closed, feeds};

/// Largest number of tokens: the scores of all layers and heads are in memory at once.
const TOKENS: usize = 256;
/// One run of each model.
const RUNS: usize = 2;

/// Relative root-mean-square errors of one attention.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerError {
    /// The layer.
    pub layer: usize,
    /// Error of the scores of visible positions, centred if a constant shift cancels in the softmax; `None` if the
    /// scores of the rewritten model are internal to an operator.
    pub scores: Option<f64>,
    /// Error of the outputs of the heads.
    pub outputs: Option<f64>,
}

/// Runs both models on the first tokens of `tokens`, each in one run. Returns nothing for a model that reads the tokens of
/// such a run exactly, because it loses nothing there, and for one whose sizes are fixed, so that it has no such run.
/// `progress` is called after each run with (done, total).
///
/// # Errors
/// [`CalibrateError`] if a model cannot be run.
pub fn layer_errors(
    original: Analyzed,
    rewritten: &LoadedModel,
    tokens: &[i64],
    runtime: &RuntimeOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<LayerError>, CalibrateError> {
    if exact_tokens(&rewritten.model.proto) != ExactTokens::None {
        return Ok(Vec::new());
    }
    let interface = LanguageModel::of(&original.model.model.proto)?.interface;
    let length = interface.fixed_length().unwrap_or(TOKENS);
    let tokens = tokens.get(..length.min(tokens.len())).unwrap_or_default();
    if interface.check_prompt(tokens.len()).is_err() {
        return Ok(Vec::new());
    }
    let quantities = [Quantity::Scores, Quantity::Output];
    progress(0, RUNS);
    let mut watched = Watched::open(original, &quantities, runtime)?;
    let before = watched.read(tokens)?;
    progress(1, RUNS);
    let after = same_values(rewritten, &watched.layers, tokens, runtime)?;
    progress(2, RUNS);
    let all = watched.layers.iter().flat_map(ObservedLayer::readers);
    let errors = all.map(|layer| {
        let pair = |quantity, value: &str| {
            let name = layer.outputs.get(&quantity)?;
            let (before, after) = (before.get(name)?, after.get(value)?);
            // A score for each cached row; those of a static cache that hold no token come last.
            let rows = before.shape.last().copied().unwrap_or(1);
            Some((before.floats(), after.floats(), rows))
        };
        let shifts = layer.scoring.is_some_and(|s| s.ignores_shifts());
        let scores = pair(Quantity::Scores, &layer.score);
        let outputs = pair(Quantity::Output, &layer.output);
        LayerError {
            layer: layer.site.layer,
            scores: scores.map(|(a, b, rows)| score_error((&a, &b), rows, tokens.len(), shifts)),
            outputs: outputs.map(|(a, b, _)| relative(&a, &b)),
        }
    });
    Ok(errors.collect())
}

/// Runs the rewritten model and returns its scores and head outputs, which have the names of the original's.
fn same_values(
    rewritten: &LoadedModel,
    layers: &[ObservedLayer],
    tokens: &[i64],
    runtime: &RuntimeOptions,
) -> Result<BTreeMap<String, Tensor>, CalibrateError> {
    let interface = LanguageModel::of(&rewritten.model.proto)?
        .fed(&runtime.given)?
        .interface;
    // The head size of kept heads may be undeclared.
    let interface = closed(interface, &widths(layers));
    let mut proto = rewritten.model.proto.clone();
    if let Some(graph) = &mut proto.graph {
        let made: Vec<&String> = graph.node.iter().flat_map(|n| &n.output).collect();
        let all = layers.iter().flat_map(ObservedLayer::readers);
        let wanted = all.flat_map(|l| [&l.score, &l.output]);
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

/// The error over the causally visible positions of `length` tokens, with `width` scores for each query. With `shifts`,
/// a constant difference of the scores of a query does not count.
fn score_error((a, b): (&[f32], &[f32]), width: usize, length: usize, shifts: bool) -> f64 {
    let (mut off, mut whole) = (0.0, 0.0);
    let rows = a.chunks(width.max(1)).zip(b.chunks(width.max(1)));
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
