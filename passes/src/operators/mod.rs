//! Operators that are attention by themselves: what each one is, in one table, and how it is spelled out as primitives,
//! so that one recogniser proves them all.
//!
//! An operator becomes exactly what its specification says: split, rotation, cache append, repetition, products, mask,
//! softmax. What cannot be spelled out stays as it is and is refused by name.
//!
//! A new operator is a file with an [`Operator`] in it, and its line below.

mod fused_product;
mod refused;
mod spell;

mod attention;
mod grouped_query;
mod multi_head;

/// Every operator that can be spelled out.
const TABLE: &[&Operator] = &[
    &attention::OPERATOR,
    &grouped_query::OPERATOR,
    &multi_head::OPERATOR,
];

use std::collections::{BTreeMap, HashMap};

use crate::facts::{Facts, OutputFacts};
use crate::graph::patch::Patch;
use crate::graph::{Graph, NodeId, label};
use crate::onnx::NodeProto;
use crate::recognize::reject::Reason;
use crate::recognize::site::Dialect;

pub use spell::Speller;

/// An operator that is attention by itself.
#[derive(Debug)]
struct Operator {
    /// Its domain; empty for the standard one.
    domain: &'static str,
    /// Its name, which is also that of its dialect in reports.
    name: &'static str,
    /// Types and shapes of its outputs.
    outputs: OutputFacts,
    /// Spells one node out, for one target.
    spell: fn(&mut Speller, &NodeProto, Target) -> Result<Spelled, Reason>,
    /// Whether it counts positions from the mask by itself, which is right only where padding is on the right.
    counts_positions: bool,
}

/// The operator that `node` is.
fn operator(node: &NodeProto) -> Option<&'static Operator> {
    let domain = match node.domain() {
        "ai.onnx" => "",
        domain => domain,
    };
    let mut all = TABLE.iter().copied();
    all.find(|o| o.name == node.op_type() && o.domain == domain)
}

/// The rule of [`crate::facts`] for `node`, where it is one of these operators.
pub fn output_facts(node: &NodeProto) -> Option<OutputFacts> {
    operator(node).map(|o| o.outputs)
}

/// Whether `node` is one of these operators, or one that is refused by name.
pub fn is_attention(node: &NodeProto) -> bool {
    operator(node).is_some() || refused::reason(node).is_some()
}

/// Whether `node` counts positions from the mask by itself, so that padding has to be on the right.
pub fn counts_positions(node: &NodeProto) -> bool {
    operator(node).is_some_and(|o| o.counts_positions)
}

/// What a rewritten attention runs as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Target {
    /// Matrix products with heads as rows: fastest on CPUs, and made of standard operators.
    #[default]
    MatMul,
    /// `com.microsoft.GroupQueryAttention` with one latent head, for models that use that operator: past and present
    /// may share a buffer.
    Gqa,
}

/// One operator that was spelled out.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// Which operator it was.
    pub dialect: Dialect,
    /// Label of the operator.
    pub label: String,
    /// The operator itself, where the target `gqa` can put it back around a latent cache.
    pub grouped: Option<NodeProto>,
}

/// How the attention operators of one graph are spelled out.
#[derive(Debug, Clone, Default)]
pub struct Lowered {
    /// Each operator to the primitives it becomes.
    pub patch: Patch,
    /// By the output name of the score product: where it comes from.
    pub origins: HashMap<String, Origin>,
    /// By the first output name of an operator that stays: why.
    pub refused: BTreeMap<String, Reason>,
}

impl Lowered {
    /// Puts what `speller` has made in place of the node `id`; returns the values that later operators may share.
    fn take(&mut self, id: NodeId, speller: Speller) -> HashMap<String, String> {
        let (nodes, initializers, keys) = speller.finish();
        self.patch.replaced.insert(id, nodes);
        self.patch.add_initializers(initializers);
        keys
    }
}

/// Spells out every attention operator and every fused product of `graph`.
pub fn lower(graph: &Graph, facts: &Facts, target: Target) -> Lowered {
    let mut lowered = Lowered::default();
    let mut shared = HashMap::new();
    for (id, node) in graph.nodes() {
        if fused_product::is_candidate(graph, facts, node) {
            let mut speller = Speller::new(graph, facts, node, &mut shared);
            if fused_product::spell(&mut speller, node).is_some() {
                let made = lowered.take(id, speller);
                shared.extend(made);
            }
            continue;
        }
        let mut refuse = |reason| {
            let output = node.output.first().cloned().unwrap_or_default();
            lowered.refused.insert(output, reason);
        };
        let Some(operator) = operator(node) else {
            if let Some(reason) = refused::reason(node) {
                refuse(reason);
            }
            continue;
        };
        let mut speller = Speller::new(graph, facts, node, &mut shared);
        match (operator.spell)(&mut speller, node, target) {
            Ok(spelled) => {
                let origin = Origin {
                    dialect: Dialect(operator.name),
                    label: label(node).to_owned(),
                    grouped: spelled.grouped,
                };
                lowered.origins.insert(spelled.score, origin);
                let made = lowered.take(id, speller);
                shared.extend(made);
            }
            Err(reason) => refuse(reason),
        }
    }
    lowered
}

/// Refuses `node` because of `detail`.
fn unsupported(node: &NodeProto, detail: &str) -> Reason {
    let op = match node.domain() {
        "" | "ai.onnx" => node.op_type().to_owned(),
        domain => format!("{domain}.{}", node.op_type()),
    };
    Reason::UnsupportedOperator {
        op,
        detail: detail.to_owned(),
    }
}

/// What an operator was spelled out as.
struct Spelled {
    /// Output name of the score product.
    score: String,
    /// The operator, where the target `gqa` can put it back.
    grouped: Option<NodeProto>,
}
