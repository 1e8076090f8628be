//! Where keys are rotated by their positions, and how the same rotation is applied to other rows at other positions.
//!
//! Nothing is said of the kind of rotation: half-split or interleaved, the whole head or a part of it, scaled or not,
//! spelled out or an operator. What is proved is that the nodes between the rows before and the keys that are cached work
//! on each position by itself, so that a copy of them does to other rows what they do to these.

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
use rows::Rows;
use walk::ancestors;

pub use positions::{Positions, PositionsShape};
pub use rope::{Rotated, RotatedChannels, Rotation};

/// The rotation in front of the cached keys of `site`.
pub fn rotation(graph: &Graph, facts: &Facts, site: &Site) -> Rotated {
    let keys = Rows {
        value: &site.key.new,
        heads: site.kv_heads,
        size: site.key.size,
        past: past_length(facts, site),
    };
    rotation_of(graph, facts, &keys)
}

/// The rotation of the queries of `site`, with every factor between it and the score product.
pub fn query_rotation(graph: &Graph, facts: &Facts, site: &Site) -> Rotated {
    let queries = Rows {
        value: &site.query,
        heads: site.heads,
        size: site.key.size,
        past: past_length(facts, site),
    };
    rotation_of(graph, facts, &queries)
}

/// P, the length of the key cache before this step.
fn past_length(facts: &Facts, site: &Site) -> Option<TDim> {
    let past = site.key.cache.as_ref()?.past.as_ref()?;
    facts.shape(past)?.get(2).cloned()
}

fn rotation_of(graph: &Graph, facts: &Facts, site: &Rows) -> Rotated {
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
