//! Rules for KV caches across the subgraphs of a model: each cache is an output of the model, each present continues
//! its own past, and only the cache's attention reads it.

use std::collections::{HashMap, HashSet};

use crate::analysis::placed::{CacheOutput, OutputPlace, PlacedSite};
use crate::facts::Facts;
use crate::facts::scoped::ScopeFacts;
use crate::graph::scopes::Scope;
use crate::graph::{Graph, aliases, is_alias, is_op, label};
use crate::onnx::{GraphProto, NodeProto};
use crate::recognize::reject::{Operand, Reason};
use crate::recognize::shape_reader::shape_readers;

/// The sites that break a rule: position in `sites`, and reason.
pub type Refusals = Vec<(usize, Reason)>;

/// Refuses caches of branches that are not an output of every enclosing `If`, computed by a recognised attention in
/// both branches.
pub fn caches_that_do_not_reach_the_interface(sites: &[PlacedSite], main: &GraphProto) -> Refusals {
    let places: Vec<_> = sites.iter().map(|p| p.output_places(main)).collect();
    let mut made: HashMap<OutputPlace, HashSet<usize>> = HashMap::new();
    for output in places.iter().flatten() {
        made.entry(output.place.clone())
            .or_default()
            .insert(output.branch);
    }
    // Both branches of an `If` must compute the output by an attention, directly or in a nested `If`.
    let lonely = |output: &&CacheOutput| made.get(&output.place).is_none_or(|b| b.len() != 2);
    let refused = places.iter().enumerate().filter_map(|(position, places)| {
        let place = &places.iter().find(lonely)?.place;
        let node = place.around.get(main).and_then(|g| g.node.get(place.node));
        let present = node.and_then(|n| n.output.get(place.position)).cloned();
        let reason = Reason::OtherBranch {
            present: present.unwrap_or_default(),
            node: node.map_or_else(String::new, |n| label(n).to_owned()),
        };
        Some((position, reason))
    });
    refused.collect()
}

/// Refuses sites whose present continues another cache than their past: by the names of graph inputs and outputs, or
/// because another branch continues another past under the same output.
pub fn caches_that_come_back_as_others(sites: &[PlacedSite], main: &GraphProto) -> Refusals {
    let names: Vec<Vec<(Option<String>, String)>> =
        sites.iter().map(|p| p.model_names(main)).collect();
    let pairs = || names.iter().flatten();
    let pasts: HashSet<String> = pairs()
        .filter_map(|(past, _)| Some(cache_stem(past.as_ref()?)))
        .collect();
    let mut past_of: HashMap<&str, HashSet<&str>> = HashMap::new();
    for (past, present) in pairs() {
        let known = past_of.entry(present).or_default();
        known.extend(past.as_deref());
    }
    let crossed = |(past, present): &(Option<String>, String)| {
        let past = past.as_ref()?;
        let (own, out) = (cache_stem(past), cache_stem(present));
        let by_name = own != out && pasts.contains(&out);
        let by_branch = past_of.get(present.as_str()).is_some_and(|p| p.len() > 1);
        (by_name || by_branch).then(|| Reason::CrossedCaches {
            past: past.clone(),
            present: present.clone(),
        })
    };
    let refused = names.iter().enumerate();
    refused
        .filter_map(|(position, names)| Some((position, names.iter().find_map(crossed)?)))
        .collect()
}

/// The common part of the names of a past and its present: `0.key` for `past_key_values.0.key` and `present.0.key`.
fn cache_stem(name: &str) -> String {
    let name = name.to_lowercase().replace("past_key_values", "past");
    let parts = name.split(|c: char| !c.is_alphanumeric());
    let directions = ["past", "present", "in", "out", "input", "output", "new"];
    let kept: Vec<&str> = parts
        .filter(|part| !part.is_empty() && !directions.contains(part))
        .collect();
    kept.join(".")
}

/// Refuses sites whose past is read in another graph that has no site with that past.
pub fn pasts_that_others_read(
    sites: &[PlacedSite],
    main: &GraphProto,
    facts: &ScopeFacts,
) -> Refusals {
    let mut served: HashMap<(Operand, &str), HashSet<&Scope>> = HashMap::new();
    for placed in sites {
        for past in pasts_of(placed) {
            served.entry(past).or_default().insert(&placed.scope);
        }
    }
    if served.values().all(|scopes| scopes.len() == facts.count()) {
        return Refusals::new();
    }
    let mut clashes: HashMap<(Operand, &str), Reason> = HashMap::new();
    facts.for_each(main, &mut |scoped| {
        for ((operand, past), scopes) in &served {
            if !scopes.contains(scoped.scope)
                && let Some(reason) =
                    foreign_reader(scoped.graph, scoped.facts, *operand, past, &|_| false)
            {
                clashes.insert((*operand, past), reason);
            }
        }
    });
    let refused = sites.iter().enumerate().filter_map(|(position, placed)| {
        let reason = pasts_of(placed).find_map(|p| clashes.get(&p))?;
        Some((position, reason.clone()))
    });
    refused.collect()
}

fn pasts_of(placed: &PlacedSite) -> impl Iterator<Item = (Operand, &str)> {
    let caches = placed.caches();
    caches.filter_map(|(operand, cache)| Some((operand, cache.past.as_deref()?)))
}

/// Refuses sites in a branch whose present, which is an output of the enclosing `If`, is also read by a node of the
/// enclosing graph or of a subgraph of another node there.
pub fn presents_that_others_read(
    sites: &[PlacedSite],
    main: &GraphProto,
    facts: &ScopeFacts,
) -> Refusals {
    let mut outside: HashMap<(Operand, OutputPlace), Vec<usize>> = HashMap::new();
    for (position, placed) in sites.iter().enumerate() {
        for output in placed.output_places(main) {
            let key = (output.operand, output.place);
            outside.entry(key).or_default().push(position);
        }
    }
    let mut refused = Refusals::new();
    if outside.is_empty() {
        return refused;
    }
    facts.for_each(main, &mut |scoped| {
        let reached = outside.iter().filter(|((_, p), _)| p.reaches(scoped.scope));
        for ((operand, place), sites) in reached {
            let around = place.around.get(main);
            let node = around.and_then(|g| g.node.get(place.node));
            let Some(value) = node.and_then(|n| n.output.get(place.position)) else {
                continue;
            };
            // Aliases in the main graph are followed to its outputs, as the change of the interface is.
            let values = match scoped.scope.0.is_empty() {
                true => aliases(scoped.graph.proto(), value),
                false => vec![value.as_str()],
            };
            let readers = values.iter().find_map(|value| {
                let passed_on = |node: &NodeProto| is_alias(node) && values.contains(&output(node));
                foreign_reader(scoped.graph, scoped.facts, *operand, value, &passed_on)
            });
            if let Some(reason) = readers {
                refused.extend(sites.iter().map(|position| (*position, reason.clone())));
            }
        }
    });
    refused.sort_by_key(|(position, _)| *position);
    refused.dedup_by_key(|(position, _)| *position);
    refused
}

/// The first output of `node`.
fn output(node: &NodeProto) -> &str {
    node.output.first().map_or("", String::as_str)
}

/// A node of a graph without a site that computes with `past`, or needs a size of it that changes. Nodes that `passed_on`
/// accepts do neither.
fn foreign_reader(
    graph: &Graph,
    facts: &Facts,
    operand: Operand,
    past: &str,
    passed_on: &dyn Fn(&NodeProto) -> bool,
) -> Option<Reason> {
    for usage in graph.uses(past) {
        let node = graph.node(usage.node)?;
        // Uses in subgraphs of the node are checked when those are visited.
        let captured = usage.input.is_none();
        if !captured && !is_op(node, "Shape") && !passed_on(node) {
            return Some(Reason::SecondReader {
                operand,
                value: past.to_owned(),
                reader: format!("{} '{}'", node.op_type(), label(node)),
            });
        }
    }
    match shape_readers(graph, facts, past, past, true) {
        Ok(readers) if readers.is_empty() => None,
        Ok(_) => Some(Reason::ShapeReader {
            value: past.to_owned(),
            reader: "another graph of the model".to_owned(),
        }),
        Err((_, reason)) => Some(reason),
    }
}
