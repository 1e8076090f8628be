//! What must hold of caches across the graphs of a model: they reach the interface, come back as themselves, and have no
//! reader but their attention.

use std::collections::{HashMap, HashSet};

use crate::analysis::placed::{OutputPlace, PlacedSite};
use crate::facts::Facts;
use crate::facts::scoped::ScopeFacts;
use crate::graph::scopes::Scope;
use crate::graph::{Graph, is_op, label};
use crate::onnx::GraphProto;
use crate::recognize::reject::{Operand, Reason};
use crate::recognize::shape_reader::shape_readers;

/// The reason why each site of `sites` that breaks a rule is refused, by its position.
pub type Refusals = Vec<(usize, Reason)>;

/// A cache of a branch has to be an output of the `If`, made by both branches, and so on out to the model.
pub fn caches_that_do_not_reach_the_interface(sites: &[PlacedSite], main: &GraphProto) -> Refusals {
    let places: Vec<_> = sites.iter().map(|p| p.output_places(main)).collect();
    let mut made: HashMap<OutputPlace, HashSet<usize>> = HashMap::new();
    for (place, branch) in places.iter().flatten() {
        made.entry(place.clone()).or_default().insert(*branch);
    }
    // `If` has two branches, and each has to make the output, itself or by an `If` of its own.
    let lonely = |place: &&(OutputPlace, usize)| made.get(&place.0).is_none_or(|b| b.len() != 2);
    let refused = places.iter().enumerate().filter_map(|(position, places)| {
        let (place, _) = places.iter().find(lonely)?;
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

/// What goes in as one cache may not come out as another: by the names of the interface, or in another branch.
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

/// What the names of a past and of its present have in common: `0.key` for `past_key_values.0.key` and `present.0.key`.
fn cache_stem(name: &str) -> String {
    let name = name.to_lowercase().replace("past_key_values", "past");
    let parts = name.split(|c: char| !c.is_alphanumeric());
    let directions = ["past", "present", "in", "out", "input", "output", "new"];
    let kept: Vec<&str> = parts
        .filter(|part| !part.is_empty() && !directions.contains(part))
        .collect();
    kept.join(".")
}

/// The past of a site may be read in no other graph but by a site of that graph.
pub fn pasts_that_others_read(
    sites: &[PlacedSite],
    main: &GraphProto,
    facts: &ScopeFacts,
) -> Refusals {
    let mut served: HashMap<&str, HashSet<&Scope>> = HashMap::new();
    for placed in sites {
        for past in placed.caches().filter_map(|c| c.past.as_deref()) {
            served.entry(past).or_default().insert(&placed.scope);
        }
    }
    if served.values().all(|scopes| scopes.len() == facts.count()) {
        return Refusals::new();
    }
    let mut clashes: HashMap<&str, Reason> = HashMap::new();
    facts.for_each(main, &mut |scoped| {
        for (past, scopes) in &served {
            if !scopes.contains(scoped.scope)
                && let Some(reason) = foreign_reader(scoped.graph, scoped.facts, past)
            {
                clashes.insert(past, reason);
            }
        }
    });
    let refused = sites.iter().enumerate().filter_map(|(position, placed)| {
        let mut pasts = placed.caches().filter_map(|c| c.past.as_deref());
        let reason = pasts.find_map(|p| clashes.get(p))?;
        Some((position, reason.clone()))
    });
    refused.collect()
}

/// The present of a branch goes out through the node around it: no node out there, and none in the graphs inside the other
/// nodes there, may read it.
pub fn presents_that_others_read(
    sites: &[PlacedSite],
    main: &GraphProto,
    facts: &ScopeFacts,
) -> Refusals {
    let mut outside: HashMap<OutputPlace, Vec<usize>> = HashMap::new();
    for (position, placed) in sites.iter().enumerate() {
        for (place, _) in placed.output_places(main) {
            outside.entry(place).or_default().push(position);
        }
    }
    let mut refused = Refusals::new();
    if outside.is_empty() {
        return refused;
    }
    facts.for_each(main, &mut |scoped| {
        for (place, sites) in outside.iter().filter(|(p, _)| p.reaches(scoped.scope)) {
            let around = place.around.get(main);
            let node = around.and_then(|g| g.node.get(place.node));
            let Some(value) = node.and_then(|n| n.output.get(place.position)) else {
                continue;
            };
            if let Some(reason) = foreign_reader(scoped.graph, scoped.facts, value) {
                refused.extend(sites.iter().map(|position| (*position, reason.clone())));
            }
        }
    });
    refused.sort_by_key(|(position, _)| *position);
    refused.dedup_by_key(|(position, _)| *position);
    refused
}

/// A node of a graph without a site that computes with `past`, or needs a size of it that changes.
fn foreign_reader(graph: &Graph, facts: &Facts, past: &str) -> Option<Reason> {
    for usage in graph.uses(past) {
        let node = graph.node(usage.node)?;
        // Uses inside the graphs of the node are checked when those graphs are visited.
        let captured = usage.input.is_none();
        if !captured && !is_op(node, "Shape") {
            return Some(Reason::SecondReader {
                operand: Operand::Key,
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
