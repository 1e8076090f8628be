//! Instrumentation for calibration: a copy of a model whose outputs are inner values of its attentions.
//!
//! Fused operators are expanded first, so that the same values exist in every dialect. Nodes that no observed value
//! depends on, such as the LM head, are removed.

use std::collections::{BTreeMap, HashMap};

use ndarray::Array2;

use crate::analysis::Analysis;
use crate::analysis::identity::{CacheId, SiteId};
use crate::analysis::view::SiteView;
use crate::factor::readers::Readers;
use crate::factor::rope::Rope;
use crate::facts::Facts;
use crate::graph::build::{int64_vector, node, vector_name};
use crate::graph::cleanup::{Live, cleanup};
use crate::graph::scopes::Scope;
use crate::graph::{Graph, NodeId};
use crate::onnx::stored::Model;
use crate::onnx::{
    GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto,
    tensor_proto::DataType, type_proto,
};
use crate::recognize::rotation::Rotated;
use crate::recognize::scoring::{Scoring, masked_scores};
use crate::recognize::site::Site;

/// A quantity of an attention that an instrumented model returns. Shapes: B batch, T new tokens, S past and new tokens,
/// H query heads, G KV heads, d key head size, dv value head size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Quantity {
    /// Queries [B, H, T, d] as they enter the score product.
    Query,
    /// New keys [B, G, T, d] as they enter the cache.
    Key,
    /// New values [B, G, T, dv] as they enter the cache.
    Value,
    /// New keys before RoPE, [B, G, T, d] or [B, T, G*d]; absent if the rotation is not recognised.
    Unrotated,
    /// Attention probability of each key position, summed over the queries: [B, H, S], fp32.
    Received,
    /// Squared attention probability of each key position, summed over the queries: [B, H, S], fp32.
    ReceivedSquared,
    /// Scores of the first head as they enter the softmax, masks included: [B, T, S], fp32.
    FirstHeadScores,
    /// Outputs of the score product [B, H, T, S], before scale and mask.
    Scores,
    /// Outputs of the value product [B, H, T, dv].
    Output,
}

/// One attention and the outputs of the instrumented model that belong to it.
#[derive(Debug, Clone)]
pub struct ObservedLayer {
    /// The unique name of the attention in its model.
    pub id: SiteId,
    /// The attention.
    pub site: Site,
    /// The output of the score product.
    pub score: String,
    /// The output of the value product.
    pub output: String,
    /// Scale and softcap of the scores; `None` if there are other operators before the softmax.
    pub scoring: Option<Scoring>,
    /// The RoPE of its keys.
    pub rotated: Rotated,
    /// The frequencies and factors of that RoPE; `None` if they do not follow from constants of the graph.
    pub rope: Option<Rope>,
    /// W_O [H*dv, E], if the outputs are projected by a stored weight.
    pub output_projection: Option<Array2<f64>>,
    /// What is known of the scores of all attentions that read its cache, see [`SiteView::shared_scoring`].
    pub shared_scoring: Option<Scoring>,
    /// The weights of errors in the values for all of them, see [`SiteView::value_weight`].
    pub value_weight: Option<Vec<Array2<f64>>>,
    /// The other attentions that read its cache, in their order.
    pub sharing: Vec<ObservedLayer>,
    /// The name of the model output for each available quantity.
    pub outputs: BTreeMap<Quantity, String>,
}

/// An instrumented model and the meaning of its outputs.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The ONNX model; it refers to the external data files of the original.
    pub proto: ModelProto,
    /// The recognised attentions in graph order, one for each cache; branches that share a cache count as one.
    pub layers: Vec<ObservedLayer>,
}

impl ObservedLayer {
    /// The attentions that read its cache, itself first.
    pub fn readers(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.sharing)
    }

    /// The query heads of all of them.
    pub fn reading_heads(&self) -> Readers {
        let heads = self.readers().map(|layer| layer.site.heads).collect();
        Readers::new(heads, self.site.kv_heads)
    }
}

/// The error of a model that cannot be instrumented.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObserveError {
    /// No attention is recognised.
    #[error("no attention of the model is recognised; `inspect --why` says why")]
    Nothing,
    /// An attention is in a loop body, whose values cannot be outputs of the model.
    #[error(
        "the attention at '{0}' stands in the body of a loop, whose values cannot be read from outside: export the loop unrolled"
    )]
    Loop(String),
    /// The model does not match its analysis.
    #[error("the model cannot be observed: {0}")]
    Malformed(String),
}

/// Instruments `model`, whose analysis is `analysis`, to return `quantities` of every recognised attention.
///
/// # Errors
/// [`ObserveError`] if no attention is recognised, or one is in a loop.
pub fn observe(
    model: &Model,
    analysis: &Analysis,
    quantities: &[Quantity],
) -> Result<Observed, ObserveError> {
    if analysis.sites.is_empty() {
        return Err(ObserveError::Nothing);
    }
    let mut views = Views::default();
    analysis.visit::<ObserveError>(model, &mut |view| {
        views.look(view, quantities);
        Ok(())
    })?;
    let mut graph = analysis.main.clone();
    let before = Live::of(&graph);
    graph.output.clear();
    let opset13_axes = int64_vector(&vector_name(&[2]), &[2]);
    for (scope, view) in views.views {
        expose(&mut graph, &scope, view)?;
    }
    if !graph
        .initializer
        .iter()
        .any(|t| t.name() == opset13_axes.name())
    {
        graph.initializer.push(opset13_axes);
    }
    add_first_index(&mut graph);
    cleanup(&mut graph, &before);
    let mut proto = model.proto.clone();
    proto.graph = Some(graph);
    Ok(Observed {
        proto,
        layers: views.layers,
    })
}

/// The additions to the graph of one attention.
struct ObservedView {
    nodes: Vec<NodeProto>,
    /// For each output: the value in the graph of the attention, the name of the model output, the element type.
    outputs: Vec<(String, String, i32)>,
}

#[derive(Default)]
struct Views {
    views: Vec<(Scope, ObservedView)>,
    layers: Vec<ObservedLayer>,
    /// Of each cache, the position of its first reader in `layers`, and how many readers are known.
    numbers: HashMap<CacheId, (usize, usize)>,
}

impl Views {
    fn look(&mut self, seen: &SiteView, quantities: &[Quantity]) {
        let (site, placed) = (seen.site(), seen.placed);
        // Both branches of an `If` return the quantities of one attention under the same names.
        let next = (self.layers.len(), 0);
        let (number, known) = self.numbers.get(&placed.cache).copied().unwrap_or(next);
        let reader = placed.reader;
        let mut view = ObservedView {
            nodes: Vec::new(),
            outputs: Vec::new(),
        };
        let mut outputs = BTreeMap::new();
        for &quantity in quantities {
            // Branches must return the same outputs, but may have different rotations.
            if quantity == Quantity::Unrotated && !seen.is_in_main_graph() {
                continue;
            }
            let shown = match reader {
                0 => format!("observed/{number}/{quantity:?}"),
                _ => format!("observed/{number}/reader{reader}/{quantity:?}"),
            };
            let rotated = seen.rotation();
            let inside = (seen.graph, seen.facts.as_ref());
            let made = source(inside, site, rotated, quantity, &shown, &mut view.nodes);
            let Some((value, elem_type)) = made else {
                continue;
            };
            outputs.insert(quantity, shown.clone());
            view.outputs.push((value, shown, elem_type));
        }
        self.views.push((placed.scope.clone(), view));
        if reader >= known {
            self.numbers
                .insert(placed.cache.clone(), (number, reader + 1));
            let first_reader = reader == 0;
            let layer = ObservedLayer {
                id: placed.id.clone(),
                site: site.clone(),
                score: output_of(seen.graph, site.score),
                output: output_of(seen.graph, site.output),
                scoring: seen.scoring(),
                rope: seen.rope(),
                rotated: seen.rotation().clone(),
                output_projection: seen.output_projection(),
                shared_scoring: first_reader.then(|| seen.shared_scoring()).flatten(),
                value_weight: first_reader.then(|| seen.value_weight()).flatten(),
                sharing: Vec::new(),
                outputs,
            };
            match self.layers.get_mut(number) {
                Some(first) => first.sharing.push(layer),
                None => self.layers.push(layer),
            }
        }
    }
}

fn output_of(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    node.and_then(|n| n.output.first())
        .cloned()
        .unwrap_or_default()
}

/// The value that holds `quantity` and its element type. Nodes that compute it are appended to `nodes`.
fn source(
    (graph, facts): (&Graph, &Facts),
    site: &Site,
    rotated: &Rotated,
    quantity: Quantity,
    shown: &str,
    nodes: &mut Vec<NodeProto>,
) -> Option<(String, i32)> {
    let float = DataType::Float as i32;
    let output = |id| graph.node(id)?.output.first().cloned();
    let part = |p: &str| format!("{shown}/{p}");
    Some(match quantity {
        Quantity::Query => (site.query.clone(), site.key.product_type),
        Quantity::Key => (site.key.new.clone(), site.elem_type),
        Quantity::Unrotated => match rotated {
            Rotated::By(rotation) => {
                let (more, rows) = rotation.rows(graph, &part)?;
                nodes.extend(more);
                (rows, site.elem_type)
            }
            Rotated::No => (site.key.new.clone(), site.elem_type),
            Rotated::Unknown(_) => return None,
        },
        Quantity::Value => (site.value.new.clone(), site.elem_type),
        Quantity::Scores => (output(site.score)?, site.key.product_type),
        Quantity::Output => (output(site.output)?, site.value.product_type),
        Quantity::FirstHeadScores => {
            let scores = masked_scores(graph, facts, site)?;
            let (value, index) = (part("head"), FIRST);
            nodes.push(node("Gather", &value, &[scores, index], &[&value]).with_int("axis", 1));
            nodes.push(
                node("Cast", &part("f32"), &[&value], &[&part("f32")]).with_int("to", float.into()),
            );
            (part("f32"), float)
        }
        Quantity::Received | Quantity::ReceivedSquared => {
            // Squares of small probabilities underflow in fp16.
            let wide = part("f32");
            nodes.push(
                node("Cast", &wide, &[&site.probabilities], &[&wide]).with_int("to", float.into()),
            );
            let mut summed = wide.clone();
            if quantity == Quantity::ReceivedSquared {
                summed = part("squared");
                nodes.push(node("Mul", &summed, &[&wide, &wide], &[&summed]));
            }
            let sum = part("sum");
            nodes.push(
                node("ReduceSum", &sum, &[&summed, &vector_name(&[2])], &[&sum])
                    .with_int("keepdims", 0),
            );
            (sum, float)
        }
    })
}

/// Name of the scalar index 0.
const FIRST: &str = "observed/first";

fn add_first_index(graph: &mut GraphProto) {
    graph.initializer.push(TensorProto {
        name: Some(FIRST.to_owned()),
        data_type: Some(DataType::Int64 as i32),
        raw_data: Some(0i64.to_le_bytes().to_vec().into()),
        ..TensorProto::default()
    });
}

/// Adds the nodes of `view` to the graph at `scope`, and its outputs to this graph and all enclosing ones.
fn expose(main: &mut GraphProto, scope: &Scope, view: ObservedView) -> Result<(), ObserveError> {
    let malformed = || ObserveError::Malformed("a graph is not where it was".to_owned());
    let graph = scope.get_mut(main).ok_or_else(malformed)?;
    graph.node.extend(view.nodes);
    let inside = scope.around().is_some();
    for (value, shown, elem_type) in &view.outputs {
        // `Identity` gives the output a new name, because the value may already be an output.
        let name = match inside {
            true => format!("{shown}/branch{}", scope.0.len()),
            false => shown.clone(),
        };
        graph.node.push(node("Identity", &name, &[value], &[&name]));
        add_output(graph, &name, *elem_type);
    }
    let mut scope = scope.clone();
    while let Some((around, step)) = scope.around() {
        let graph = around.get_mut(main).ok_or_else(malformed)?;
        let node = graph.node.get_mut(step.node).ok_or_else(malformed)?;
        if node.op_type() != "If" {
            return Err(ObserveError::Loop(node.name().to_owned()));
        }
        for (_, shown, elem_type) in &view.outputs {
            let name = match around.around() {
                Some(_) => format!("{shown}/branch{}", around.0.len()),
                None => shown.clone(),
            };
            // The other branch of this `If` may have added the output already.
            if node.output.contains(&name) {
                continue;
            }
            node.output.push(name.clone());
            graph.output.push(value_info(&name, *elem_type));
        }
        scope = around;
    }
    Ok(())
}

fn add_output(graph: &mut GraphProto, name: &str, elem_type: i32) {
    graph.output.push(value_info(name, elem_type));
}

/// The `ValueInfoProto` of a tensor of unknown shape.
fn value_info(name: &str, elem_type: i32) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(elem_type),
                ..type_proto::Tensor::default()
            })),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
