//! The operators between the score product and the value product: scale, softcap, mask and softmax.
//!
//! A rewrite keeps these nodes and needs no proof of them. A factorization with bias correction does: a constant added
//! to all scores of a query cancels in the softmax, and a constant added to all values is added to the output if the
//! probabilities sum to one.

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, is_op};
use crate::onnx::NodeProto;
use crate::recognize::digits::scalar;
use crate::recognize::site::Site;
use crate::recognize::softmax::softmax_of;

/// `softmax(mask(cap * tanh(scale * score / cap)))`, with probabilities that sum to one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scoring {
    /// Constant factor of the scores.
    pub scale: f64,
    /// The softcap: bound of the scaled scores by tanh, if there is one.
    pub softcap: Option<f64>,
}

impl Scoring {
    /// Whether adding a constant to all scores of a query leaves the probabilities unchanged.
    pub fn ignores_shifts(&self) -> bool {
        self.softcap.is_none()
    }
}

/// The effect of one node on the scores.
enum Effect {
    Scale(f64),
    Tanh,
    Mask,
    None,
}

/// Recognises the nodes from the score product of `site` to its probabilities; `None` if there are others, such as an
/// attention sink, whose column is part of the softmax and is then removed.
pub fn scoring(graph: &Graph, facts: &Facts, site: &Site) -> Option<Scoring> {
    let mut value = first_output(graph, site.score)?;
    let (mut before, mut after) = (1.0, 1.0);
    let (mut bent, mut masked) = (false, false);
    // The graph has no cycles, so the loop ends.
    let softmax = loop {
        if let Some(softmax) = softmax_of(graph, facts, value) {
            break softmax.probabilities;
        }
        let (_, node, position) = only_reader(graph, value)?;
        match effect(facts, node, position)? {
            // No exporter scales after the mask.
            Effect::Scale(_) if masked => return None,
            Effect::Scale(factor) if bent => after *= factor,
            Effect::Scale(factor) => before *= factor,
            Effect::Tanh if bent || masked => return None,
            Effect::Tanh => bent = true,
            Effect::Mask => masked = true,
            Effect::None => {}
        }
        value = node.output.first()?;
    };
    sums_to_one(graph, facts, softmax, &site.probabilities)?;
    if !bent {
        return Some(Scoring {
            scale: before,
            softcap: None,
        });
    }
    // after * tanh(before * x) is cap * tanh(scale * x / cap) for cap = after and scale = before * after.
    (after > 0.0).then_some(Scoring {
        scale: before * after,
        softcap: Some(after),
    })
}

/// The input of the softmax of `site`: the scores after scale, softcap and mask.
pub fn masked_scores<'g>(graph: &Graph<'g>, facts: &Facts, site: &Site) -> Option<&'g str> {
    let mut value = first_output(graph, site.score)?;
    loop {
        if softmax_of(graph, facts, value).is_some() {
            return Some(value);
        }
        let (_, node, _) = only_reader(graph, value)?;
        value = node.output.first()?;
    }
}

/// The nodes between the score product of `site` and its softmax that mask the scores, `Add` and `Where`, each with the
/// position of the scores among its inputs; `None` if [`scoring`] does not recognise the nodes.
pub fn masks(graph: &Graph, facts: &Facts, site: &Site) -> Option<Vec<(NodeId, usize)>> {
    let mut value = first_output(graph, site.score)?;
    let mut masks = Vec::new();
    while softmax_of(graph, facts, value).is_none() {
        let (id, node, position) = only_reader(graph, value)?;
        if let Effect::Mask = effect(facts, node, position)? {
            masks.push((id, position));
        }
        value = node.output.first()?;
    }
    Some(masks)
}

fn first_output<'g>(graph: &Graph<'g>, id: NodeId) -> Option<&'g str> {
    graph.node(id)?.output.first().map(String::as_str)
}

/// The only node that reads the elements of `value`, and at which input.
fn only_reader<'g>(graph: &Graph<'g>, value: &str) -> Option<(NodeId, &'g NodeProto, usize)> {
    let mut readers = graph.uses(value).iter().filter_map(|u| {
        let node = graph.node(u.node)?;
        (!is_op(node, "Shape")).then_some((u.node, node, u.input))
    });
    let (id, node, position) = readers.next()?;
    readers.next().is_none().then_some((id, node, position?))
}

fn effect(facts: &Facts, node: &NodeProto, position: usize) -> Option<Effect> {
    let other = |at: usize| node.input.get(at).and_then(|name| scalar(facts, name));
    Some(match node.op_type() {
        _ if !matches!(node.domain(), "" | "ai.onnx") => return None,
        "Mul" => Effect::Scale(other(1 - position.min(1))?),
        "Div" if position == 0 => Effect::Scale(1.0 / other(1)?),
        "Tanh" => Effect::Tanh,
        "Add" => Effect::Mask,
        // The scores are the second or third input; the condition is the first.
        "Where" if position > 0 => Effect::Mask,
        "Cast" | "Identity" => Effect::None,
        _ => return None,
    })
}

/// `Some` if only guards, dropout and casts are between the softmax and the probabilities of the value product.
fn sums_to_one(graph: &Graph, facts: &Facts, softmax: &str, probabilities: &str) -> Option<()> {
    let mut value = probabilities;
    while value != softmax {
        let (_, node) = graph.producer(value)?;
        value = match node.op_type() {
            "Cast" | "Identity" | "Dropout" => node.input.first()?,
            // A guard replaces rows without a visible position by zeros.
            "Where" => node
                .input
                .iter()
                .skip(1)
                .find(|i| graph.producer(i).is_some() && facts.floats(i).is_none())?,
            _ => return None,
        };
    }
    Some(())
}
