//! Recognition of RoPE: the nodes that rotate keys or queries, so that a rewrite can apply a copy of them to other rows
//! at other positions.
//!
//! The proof does not depend on the kind of RoPE: half-split or interleaved, whole or partial, scaled or not,
//! primitives or a fused operator. It shows that the nodes between the unrotated rows and the cached keys treat each
//! position independently, so that a copy of them rotates other rows in the same way.

pub mod fingerprint;
mod follow;
mod numbers;
mod origin;
mod positions;
mod proof;
mod rope;
mod rows;
mod walk;

use tract_data::prelude::TDim;

use crate::facts::Facts;
use crate::graph::{Graph, NodeId};
use crate::recognize::site::Site;
use follow::followed;
use positions::looked_up;
use rows::RotatedRows;
use walk::ancestors;

pub use positions::{Positions, PositionsShape};
pub use rope::{Rotated, RotatedChannels, Rotation};

/// The rotation of the cached keys of `site`.
pub fn rotation(graph: &Graph, facts: &Facts, site: &Site) -> Rotated {
    let keys = RotatedRows {
        value: &site.key.new,
        heads: site.kv_heads,
        size: site.key.size,
        past: past_length(facts, site),
    };
    rotation_of(graph, facts, &keys)
}

/// The rotation of the queries of `site`, including all factors between it and the score product.
pub fn query_rotation(graph: &Graph, facts: &Facts, site: &Site) -> Rotated {
    let queries = RotatedRows {
        value: &site.query,
        heads: site.heads,
        size: site.key.size,
        past: past_length(facts, site),
    };
    rotation_of(graph, facts, &queries)
}

/// P: the length of the past of the key cache.
fn past_length(facts: &Facts, site: &Site) -> Option<TDim> {
    let past = site.key.cache.as_ref()?.past.as_ref()?;
    facts.shape(past)?.get(2).cloned()
}

fn rotation_of(graph: &Graph, facts: &Facts, site: &RotatedRows) -> Rotated {
    let behind = ancestors(graph, site.value);
    let turns = |id: &NodeId| {
        let node = graph.node(*id);
        node.is_some_and(|n| matches!(n.op_type(), "Cos" | "Sin" | "RotaryEmbedding"))
    };
    match followed(graph, facts, site, &behind) {
        Ok(rotation) => Rotated::By(rotation),
        Err(missing) if behind.iter().any(turns) || looked_up(graph, facts, &behind).is_some() => {
            Rotated::Unknown(missing)
        }
        Err(_) => Rotated::No,
    }
}
