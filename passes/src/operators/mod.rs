//! Spells attention operators out as primitives, so that one recogniser proves them all.
//!
//! An operator becomes exactly what its specification says: split, rotation, cache append, repetition, products, mask,
//! softmax. What cannot be spelled out stays as it is and is refused by name.

mod attention;
mod grouped_query;
mod multi_head;
mod spell;

use std::collections::{BTreeMap, HashMap};

use crate::facts::Facts;
use crate::graph::patch::Patch;
use crate::graph::{Graph, is_contrib, is_op, label};
use crate::onnx::NodeProto;
use crate::recognize::reject::Reason;
use crate::recognize::site::Dialect;

pub use spell::Speller;

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

/// What is needed to put `GroupQueryAttention` back around a latent cache.
#[derive(Debug, Clone, PartialEq)]
pub struct Grouped {
    /// The operator as it was.
    pub node: NodeProto,
    /// Factor of the scores.
    pub scale: f64,
}

/// One operator that was spelled out.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// Which operator it was.
    pub dialect: Dialect,
    /// Label of the operator.
    pub label: String,
    /// The operator itself, where a target needs it back.
    pub grouped: Option<Grouped>,
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

/// Spells out every attention operator of `graph`.
pub fn lower(graph: &Graph, facts: &Facts, target: Target) -> Lowered {
    let mut lowered = Lowered::default();
    let mut shared = HashMap::new();
    for (id, node) in graph.nodes() {
        let Some(dialect) = dialect(node) else {
            if let Some(reason) = refused_by_name(node) {
                let output = node.output.first().cloned().unwrap_or_default();
                lowered.refused.insert(output, reason);
            }
            continue;
        };
        let mut speller = Speller::new(graph, facts, node, &mut shared);
        let spelled = match dialect {
            Dialect::Attention => attention::spell(&mut speller, node),
            Dialect::GroupQueryAttention => grouped_query::spell(&mut speller, node, target),
            Dialect::MultiHeadAttention => multi_head::spell(&mut speller, node),
            Dialect::MatMul => Err(unsupported(node, "it is no attention operator")),
        };
        match spelled {
            Ok(spelled) => {
                let origin = Origin {
                    dialect,
                    label: label(node).to_owned(),
                    grouped: spelled.grouped,
                };
                lowered.origins.insert(spelled.score, origin);
                let (nodes, initializers, keys) = speller.finish();
                lowered.patch.replaced.insert(id, nodes);
                lowered.patch.add_initializers(initializers);
                shared.extend(keys);
            }
            Err(reason) => {
                let output = node.output.first().cloned().unwrap_or_default();
                lowered.refused.insert(output, reason);
            }
        }
    }
    lowered
}

/// Which attention operator `node` is, if it is one.
fn dialect(node: &NodeProto) -> Option<Dialect> {
    if is_op(node, "Attention") {
        return Some(Dialect::Attention);
    }
    if is_contrib(node, "GroupQueryAttention") {
        return Some(Dialect::GroupQueryAttention);
    }
    is_contrib(node, "MultiHeadAttention").then_some(Dialect::MultiHeadAttention)
}

/// Operators that are attention and have no spelled-out form here.
fn refused_by_name(node: &NodeProto) -> Option<Reason> {
    let detail = match (node.domain(), node.op_type()) {
        ("com.microsoft", "PagedAttention") => {
            "its cache is paged and holds packed tokens, which only the CUDA provider runs"
        }
        ("com.microsoft", "SparseAttention") => "its block-sparse layout has no latent form",
        ("com.microsoft", "Attention") => {
            "it projects queries, keys and values itself, packed and with its own cache layout: export without that fusion"
        }
        (
            "com.microsoft",
            "DecoderMaskedMultiHeadAttention"
            | "DecoderMaskedSelfAttention"
            | "PackedAttention"
            | "PackedMultiHeadAttention"
            | "MultiHeadAttentionVarlen",
        ) => "its cache layout belongs to one runtime: export without that fusion",
        ("com.microsoft", "LinearAttention") => {
            "it keeps no keys and values, so there is no cache to make latent"
        }
        _ => return None,
    };
    Some(unsupported(node, detail))
}

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
    /// The operator, where a target needs it back.
    grouped: Option<Grouped>,
}
