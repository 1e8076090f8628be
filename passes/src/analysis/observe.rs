//! A model whose outputs are the inputs and results of its attentions: the same graph with other outputs.
//!
//! Operators are spelled out first, so that one description fits every dialect. What no observed value needs, the
//! output head above all, is left out.

use std::collections::{BTreeMap, HashMap};

use ndarray::Array2;

use crate::analysis::Analysis;
use crate::analysis::identity::{CacheId, SiteId};
use crate::analysis::view::SiteView;
use crate::factor::rope::Rope;
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

/// A value that every attention has, and that an observed model gives as an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Quantity {
    /// Queries [B, H, T, d] as they enter the score product.
    Query,
    /// New keys [B, G, T, d] as they enter the cache.
    Key,
    /// New values [B, G, T, dv] as they enter the cache.
    Value,
    /// New keys before rotation, [B, G, T, d] or [B, T, G*d]; absent where the rotation is not followed.
    Unrotated,
    /// Probability that each position receives, summed over the queries: [B, H, S], fp32.
    Received,
    /// The same for the squares of the probabilities: [B, H, S], fp32.
    ReceivedSquared,
    /// Scores of the first head as they enter the softmax, masks included: [B, T, S].
    FirstHeadScores,
    /// Scores [B, H, T, S] as the product gives them.
    Scores,
    /// Outputs of the value product [B, H, T, dv].
    Output,
}

/// One attention and the outputs that show it.
#[derive(Debug, Clone)]
pub struct ObservedLayer {
    /// The name of the attention among those of its model.
    pub id: SiteId,
    /// The attention.
    pub site: Site,
    /// The value that the score product makes.
    pub score: String,
    /// The value that the value product makes.
    pub output: String,
    /// Scale, softcap and mask of its scores; `None` where other operators stand before the softmax.
    pub scoring: Option<Scoring>,
    /// How its keys are rotated.
    pub rotated: Rotated,
    /// The same in numbers, where the graph's constants tell it.
    pub rope: Option<Rope>,
    /// W_O [H*dv, E], where a stored weight projects the outputs.
    pub output_projection: Option<Array2<f64>>,
    /// The model's output for each quantity; one that this attention cannot show is absent.
    pub outputs: BTreeMap<Quantity, String>,
}

/// A model to run, and what its outputs mean.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The messages; data files are the original's.
    pub proto: ModelProto,
    /// The attentions that are recognised, in graph order; branches that share a cache are one.
    pub layers: Vec<ObservedLayer>,
}

/// Why a model cannot be observed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObserveError {
    /// No attention is recognised.
    #[error("no attention of the model is recognised; `inspect --why` says why")]
    Nothing,
    /// A place whose values cannot be outputs of the model.
    #[error(
        "the attention at '{0}' stands in the body of a loop, whose values cannot be read from outside: export the loop unrolled"
    )]
    Loop(String),
    /// The model contradicts itself.
    #[error("the model cannot be observed: {0}")]
    Malformed(String),
}

/// Makes the model that shows `quantities` of every attention of `model`, which `analysis` is of.
///
/// # Errors
/// [`ObserveError`] when no attention is recognised, or one stands in a loop.
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

/// What one attention needs in its own graph.
struct View {
    nodes: Vec<NodeProto>,
    /// Value in the graph of the attention, name outside, element type.
    outputs: Vec<(String, String, i32)>,
}

#[derive(Default)]
struct Views {
    views: Vec<(Scope, View)>,
    layers: Vec<ObservedLayer>,
    numbers: HashMap<CacheId, usize>,
}

impl Views {
    fn look(&mut self, seen: &SiteView, quantities: &[Quantity]) {
        let (site, placed) = (seen.site(), seen.placed);
        // Both branches of an `If` show the same attention under the same names.
        let known = self.numbers.get(&placed.cache).copied();
        let number = known.unwrap_or(self.layers.len());
        let mut view = View {
            nodes: Vec::new(),
            outputs: Vec::new(),
        };
        let mut outputs = BTreeMap::new();
        for &quantity in quantities {
            // Branches have to give the same outputs, and may rotate in different ways.
            if quantity == Quantity::Unrotated && !seen.is_in_main_graph() {
                continue;
            }
            let shown = format!("observed/{number}/{quantity:?}");
            let rotated = seen.rotation();
            let made = source(seen.graph, site, rotated, quantity, &shown, &mut view.nodes);
            let Some((value, elem_type)) = made else {
                continue;
            };
            outputs.insert(quantity, shown.clone());
            view.outputs.push((value, shown, elem_type));
        }
        self.views.push((placed.scope.clone(), view));
        if known.is_none() {
            self.numbers.insert(placed.cache.clone(), number);
            self.layers.push(ObservedLayer {
                id: placed.id.clone(),
                site: site.clone(),
                score: output_of(seen.graph, site.score),
                output: output_of(seen.graph, site.output),
                scoring: seen.scoring(),
                rope: seen.rope(),
                rotated: seen.rotation().clone(),
                output_projection: seen.output_projection(),
                outputs,
            });
        }
    }
}

fn output_of(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    node.and_then(|n| n.output.first())
        .cloned()
        .unwrap_or_default()
}

/// The value that holds `quantity`, with the nodes that make it, and its element type.
fn source(
    graph: &Graph,
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
            let scores = masked_scores(graph, site)?;
            let (value, index) = (part("head"), FIRST);
            nodes.push(node("Gather", &value, &[scores, index], &[&value]).with_int("axis", 1));
            nodes.push(
                node("Cast", &part("f32"), &[&value], &[&part("f32")]).with_int("to", float.into()),
            );
            (part("f32"), float)
        }
        Quantity::Received | Quantity::ReceivedSquared => {
            // Squares of small probabilities vanish in half precision.
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

/// Adds the nodes of `view` to the graph at `scope`, and carries its outputs out to the model's.
fn expose(main: &mut GraphProto, scope: &Scope, view: View) -> Result<(), ObserveError> {
    let malformed = || ObserveError::Malformed("a graph is not where it was".to_owned());
    let graph = scope.get_mut(main).ok_or_else(malformed)?;
    graph.node.extend(view.nodes);
    let inside = scope.around().is_some();
    for (value, shown, elem_type) in &view.outputs {
        // An output has a name of its own: the value may be an output already, under its own name.
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
            // The first of two branches has done this already.
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

/// A value of unknown shape.
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
