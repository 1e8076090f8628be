//! Recognition of the attentions of a graph: each is proved, or refused with a reason.

mod cache;
pub mod candidate;
mod claims;
pub mod digits;
pub mod matmul;
mod module_name;
pub mod pass_through;
pub mod reject;
pub mod rotation;
pub mod scoring;
pub mod shape_reader;
mod side;
pub mod site;
mod trail;

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
        let reject = |(at, reason): (NodeId, Reason)| Reject {
            layer,
            within: None,
            node: graph
                .node(at)
                .map_or_else(String::new, |n| label(n).to_owned()),
            reason,
        };
        match candidate.and_then(|c| matmul::recognize(graph, facts, layer, c)) {
            Ok(site) => found.sites.push(site),
            Err(other) if other.1.is_not_a_site() => {
                found.others.push(reject(other));
                continue;
            }
            // Several softmaxes over one cache, one for each head, count as one attention.
            Err(_) if claims.is_refused(graph, id, &caches) => continue,
            Err((at, mut reason)) => {
                // Two refused layers that read the same cache get the reason that they share it.
                let is_second_reader =
                    |reason: &Reason| matches!(reason, Reason::SecondReader { .. });
                if let Some((past, other)) = claims.shared(&caches)
                    && is_second_reader(&reason)
                {
                    let of_other = found.rejects.iter_mut().filter(|r| r.layer == other);
                    for reject in of_other.filter(|r| is_second_reader(&r.reason)) {
                        reject.reason = Reason::SharedCache {
                            past: past.clone(),
                            other: layer,
                        };
                    }
                    reason = Reason::SharedCache { past, other };
                }
                claims.refuse(id, layer, caches);
                found.rejects.push(reject((at, reason)));
            }
        }
        layer += 1;
    }
    found.rejects.extend(claims.missing(graph, facts, layer));
    one_reader_per_cache(graph, &mut found);
    found
}

/// Refuses all attentions that share a cache with another one: their keys and values would need one common latent.
fn one_reader_per_cache(graph: &Graph, found: &mut Recognized) {
    let shared = |site: &Site, other: &Site| {
        let pasts = |s: &Site| {
            [
                s.key.cache.as_ref().and_then(|c| c.past.clone()),
                s.value.cache.as_ref().and_then(|c| c.past.clone()),
            ]
        };
        let others = pasts(other);
        pasts(site)
            .into_iter()
            .flatten()
            .find(|past| others.contains(&Some(past.clone())))
    };
    let mut clashes = Vec::new();
    for (position, site) in found.sites.iter().enumerate() {
        for other in found.sites.iter().skip(position + 1) {
            if let Some(past) = shared(site, other) {
                clashes.push((site.layer, other.layer, past.clone()));
                clashes.push((other.layer, site.layer, past));
            }
        }
        if let (Some(key), Some(value)) = (&site.key.cache, &site.value.cache)
            && let Some(past) = &key.past
            && key.past == value.past
        {
            clashes.push((site.layer, site.layer, past.clone()));
        }
    }
    for (layer, other, past) in clashes {
        if let Some(position) = found.sites.iter().position(|s| s.layer == layer) {
            let site = found.sites.remove(position);
            found.rejects.push(Reject {
                layer,
                within: None,
                node: graph
                    .node(site.score)
                    .map_or_else(String::new, |n| label(n).to_owned()),
                reason: Reason::SharedCache { past, other },
            });
        }
    }
    found.rejects.sort_by_key(|r| r.layer);
}
