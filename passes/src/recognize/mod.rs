//! Recognition of the attentions of a graph: each is proved, or refused with a reason.

pub mod append;
mod cache;
pub mod candidate;
mod claims;
pub mod digits;
pub mod divided;
mod latent;
pub mod matmul;
mod module_name;
pub mod pass_through;
pub mod reject;
pub mod rotation;
pub mod scoring;
pub mod shape_reader;
mod sharing;
mod side;
pub mod site;
mod softmax;
mod trail;
mod unknown_shape;

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::Facts;
use crate::graph::{Graph, NodeId, label};
use claims::Claims;
use reject::{Reason, Reject};
use site::Site;

/// The attentions of one graph.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Recognized {
    /// The recognised attentions.
    pub sites: Vec<Site>,
    /// Attention-like subgraphs that were not recognised, each with the reason.
    pub rejects: Vec<Reject>,
    /// Cross-attentions, to which no rewrite applies.
    pub others: Vec<Reject>,
}

impl Recognized {
    /// The number of attentions of the graph; those with the same layer number, in the branches of an `If`, count once.
    pub fn attentions(&self) -> usize {
        let sites = self.sites.iter().map(|s| s.layer);
        let all: BTreeSet<usize> = sites.chain(self.refused()).collect();
        all.len()
    }

    /// The number of attentions that are recognised and not also refused.
    pub fn recognised(&self) -> usize {
        let refused: BTreeSet<usize> = self.refused().collect();
        self.attentions() - refused.len()
    }

    fn refused(&self) -> impl Iterator<Item = usize> {
        self.rejects.iter().map(|r| r.layer)
    }
}

/// Recognises the attentions of `graph` in one pass over its nodes, in linear time. `refused` holds the reasons for
/// fused operators that could not be expanded, by their first output; `first` is the layer number of the first
/// attention.
pub fn recognize(
    graph: &Graph,
    facts: &Facts,
    refused: &BTreeMap<String, Reason>,
    first: usize,
) -> Recognized {
    let mut found = Recognized::default();
    let mut layer = first;
    let mut claims = Claims::of(graph, facts);
    let mut beside = BTreeMap::new();
    for (id, node) in graph.nodes() {
        let by_operator = node.output.first().and_then(|o| refused.get(o)).cloned();
        let candidate = match by_operator {
            Some(reason) => Err((id, reason)),
            None => match candidate::candidate(graph, facts, id, node) {
                Some(candidate) => candidate,
                None => continue,
            },
        };
        let candidate = match candidate.map(|c| (c, c.is_part_of(&found.sites))) {
            Ok((_, Ok(true))) => continue,
            Ok((candidate, Ok(false))) => Ok(candidate),
            Ok((_, Err(reason))) => Err((id, reason)),
            Err(refused) => Err(refused),
        };
        let caches = claims.add(graph, facts, id);
        match candidate.and_then(|c| matmul::recognize(graph, facts, layer, c)) {
            Ok((site, readers)) => {
                beside.insert(layer, readers);
                found.sites.push(site);
            }
            Err(other) if other.1.is_not_a_site() => {
                found.others.push(reject(graph, layer, other));
                continue;
            }
            // Several softmaxes over one cache, one for each head, count as one attention.
            Err(_) if claims.is_refused(graph, id, &caches) => continue,
            Err(refused) => {
                claims.refuse(id, layer, caches);
                found.rejects.push(reject(graph, layer, refused));
            }
        }
        layer += 1;
    }
    found.rejects.extend(claims.missing(graph, facts, layer));
    let refused = sharing::settle(graph, &mut found.sites, &beside, &claims);
    let refused = refused.into_iter();
    let rejects = refused.map(|(layer, refused)| reject(graph, layer, refused));
    found.rejects.extend(rejects);
    found.rejects.sort_by_key(|r| r.layer);
    found
}

/// What takes the place of attention `layer`, which is refused at a node for a reason.
fn reject(graph: &Graph, layer: usize, (at, reason): (NodeId, Reason)) -> Reject {
    let node = graph.node(at).map_or("", label).to_owned();
    Reject {
        layer,
        within: None,
        node,
        reason,
    }
}
