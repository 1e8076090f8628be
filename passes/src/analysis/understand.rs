//! What a model holds, over all of its graphs: operators spelled out, sites proved, caches followed to the interface.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::analysis::placed::{OutputPlace, Placed};
use crate::facts::Facts;
use crate::facts::scoped::visit;
use crate::graph::functions::{Functions, Key, called};
use crate::graph::patch::{PatchError, apply};
use crate::graph::scopes::{Body, Scope};
use crate::graph::{Graph, is_op, label};
use crate::onnx::stored::Model;
use crate::onnx::{GraphProto, NodeProto};
use crate::operators::{Lowered, Target, is_attention, lower, output_facts};
use crate::recognize::reject::{Operand, Reason, Reject};
use crate::recognize::shape_reader::shape_readers;
use crate::recognize::site::Site;
use crate::recognize::{Recognized, recognize};

/// A model with its operators spelled out, and what it holds.
#[derive(Debug, Clone)]
pub struct Understood {
    /// The main graph.
    pub main: GraphProto,
    /// The attentions that are proved.
    pub sites: Vec<Placed>,
    /// Those that look like one and are not proved.
    pub rejects: Vec<Reject>,
    /// Attentions of another kind.
    pub others: Vec<Reject>,
    /// Labels of operators that were spelled out in vain: they became no site.
    pub in_vain: HashSet<String>,
}

/// Understands `main`, the main graph of `model`. Operators labelled in `except` are not spelled out.
pub fn understand(
    model: &Model,
    main: &GraphProto,
    except: &HashSet<String>,
    target: Target,
) -> Result<Understood, PatchError> {
    let mut lowered: BTreeMap<Scope, Lowered> = BTreeMap::new();
    visit(model, main, output_facts, &mut |scope, _, graph, facts| {
        lowered.insert(scope.clone(), lower(graph, facts, except, target));
    });
    let spelled = spell_out(main, &mut lowered)?;
    let mut all = Understood {
        main: GraphProto::default(),
        sites: Vec::new(),
        rejects: Vec::new(),
        others: Vec::new(),
        in_vain: HashSet::new(),
    };
    let functions = Functions::of(&model.proto, is_attention);
    visit(
        model,
        &spelled.main,
        output_facts,
        &mut |scope, body, graph, facts| {
            all.rejects.extend(calls_of(graph, &functions.kept));
            let Some(lowered) = spelled.lowered.get(scope) else {
                return;
            };
            let found = recognize(graph, facts, &lowered.refused);
            all.take(scope, body, graph, lowered, found);
        },
    );
    all.caches_reach_the_interface(&spelled.main);
    all.caches_come_back_as_themselves(&spelled.main);
    all.nobody_else_reads_pasts(model, &spelled.main);
    all.rejects.sort_by_key(|r| r.layer);
    all.main = spelled.main;
    Ok(all)
}

/// The graph after spelling out, with what is known of each scope under its new place.
struct Spelled {
    main: GraphProto,
    lowered: BTreeMap<Scope, Lowered>,
}

/// Applies the patches, inner graphs first: the places of inner graphs change with the nodes around them.
fn spell_out(
    main: &GraphProto,
    lowered: &mut BTreeMap<Scope, Lowered>,
) -> Result<Spelled, PatchError> {
    let mut main = main.clone();
    let mut shifts: BTreeMap<Scope, Vec<(usize, usize)>> = BTreeMap::new();
    for (scope, one) in lowered.iter_mut().rev() {
        let patch = std::mem::take(&mut one.patch);
        if patch.is_empty() {
            continue;
        }
        let grown = patch
            .replaced
            .iter()
            .map(|(id, nodes)| (id.0, nodes.len()))
            .collect();
        shifts.insert(scope.clone(), grown);
        if let Some(graph) = scope.get_mut(&mut main) {
            apply(patch, graph)?;
        }
    }
    let moved = |scope: &Scope| {
        let mut around = Scope::default();
        let mut place = Scope::default();
        for step in &scope.0 {
            let grown: usize = shifts
                .get(&around)
                .into_iter()
                .flatten()
                .filter(|(node, _)| *node < step.node)
                .map(|(_, count)| count.saturating_sub(1))
                .sum();
            around.0.push(*step);
            let mut step = *step;
            step.node += grown;
            place.0.push(step);
        }
        place
    };
    let lowered = std::mem::take(lowered)
        .into_iter()
        .map(|(scope, one)| (moved(&scope), one))
        .collect();
    Ok(Spelled { main, lowered })
}

impl Understood {
    /// The ids of the sites, in their order.
    pub fn ids(&self) -> Vec<String> {
        let id = |placed: &Placed| {
            let graph = placed.scope.get(&self.main);
            graph.map_or_else(String::new, |g| placed.id(g))
        };
        self.sites.iter().map(id).collect()
    }

    /// Adds what was found in one graph.
    fn take(
        &mut self,
        scope: &Scope,
        body: Body,
        graph: &Graph,
        lowered: &Lowered,
        found: Recognized,
    ) {
        let score = |site: &Site| {
            graph
                .node(site.score)
                .and_then(|n| n.output.first())
                .cloned()
        };
        let mut taken = HashSet::new();
        for site in found.sites {
            let origin = score(&site).and_then(|s| lowered.origins.get(&s)).cloned();
            if body == Body::Iterated && site.is_cached() {
                self.rejects.push(Reject {
                    layer: site.layer,
                    node: graph
                        .node(site.score)
                        .map_or_else(String::new, |n| label(n).to_owned()),
                    reason: Reason::UnsupportedOperator {
                        op: "Loop".to_owned(),
                        detail: "the attention's cache is carried from one iteration to the next"
                            .to_owned(),
                    },
                });
                continue;
            }
            taken.extend(score(&site));
            let mut site = site;
            if let Some(origin) = &origin {
                site.dialect = origin.dialect;
            }
            self.sites.push(Placed {
                scope: scope.clone(),
                site,
                origin,
            });
        }
        self.rejects.extend(found.rejects);
        self.others.extend(found.others);
        let vain = lowered
            .origins
            .iter()
            .filter(|(score, _)| !taken.contains(*score));
        self.in_vain
            .extend(vain.map(|(_, origin)| origin.label.clone()));
    }

    /// A cache of a branch has to be an output of the `If`, made by both branches, and so on out to the model.
    fn caches_reach_the_interface(&mut self, main: &GraphProto) {
        let mut made: HashMap<(Scope, usize, usize), HashSet<usize>> = HashMap::new();
        let key = |p: &OutputPlace| (p.around.clone(), p.node, p.position);
        let places: Vec<Vec<OutputPlace>> =
            self.sites.iter().map(|p| p.output_places(main)).collect();
        for place in places.iter().flatten() {
            made.entry(key(place)).or_default().insert(place.branch);
        }
        let mut kept = Vec::new();
        for (placed, places) in std::mem::take(&mut self.sites).into_iter().zip(places) {
            // `If` has two branches, and each has to make the output, itself or by an `If` of its own.
            let lonely = places
                .iter()
                .find(|place| made.get(&key(place)).is_none_or(|b| b.len() != 2));
            match lonely {
                None => kept.push(placed),
                Some(OutputPlace {
                    around,
                    node,
                    position,
                    ..
                }) => {
                    let node = around.get(main).and_then(|g| g.node.get(*node));
                    let reason = Reason::OtherBranch {
                        present: node
                            .and_then(|n| n.output.get(*position))
                            .cloned()
                            .unwrap_or_default(),
                        node: node.map_or_else(String::new, |n| label(n).to_owned()),
                    };
                    self.reject(main, &placed, reason);
                }
            }
        }
        self.sites = kept;
    }

    /// What goes in as one cache may not come out as another: by the names of the interface, or in another branch.
    fn caches_come_back_as_themselves(&mut self, main: &GraphProto) {
        let names: Vec<Vec<(Option<String>, String)>> =
            self.sites.iter().map(|p| p.model_names(main)).collect();
        let pairs = || names.iter().flatten();
        let pasts: HashSet<String> = pairs()
            .filter_map(|(past, _)| Some(cache_stem(past.as_ref()?)))
            .collect();
        let crossed = |(past, present): &(Option<String>, String)| {
            let past = past.as_ref()?;
            let (own, out) = (cache_stem(past), cache_stem(present));
            let by_name = own != out && pasts.contains(&out);
            let by_branch = pairs().any(|(other, o)| {
                o == present && other.as_ref().is_some_and(|other| other != past)
            });
            (by_name || by_branch).then(|| Reason::CrossedCaches {
                past: past.clone(),
                present: present.clone(),
            })
        };
        let mut kept = Vec::new();
        for (placed, names) in std::mem::take(&mut self.sites).into_iter().zip(&names) {
            match names.iter().find_map(crossed) {
                Some(reason) => self.reject(main, &placed, reason),
                None => kept.push(placed),
            }
        }
        self.sites = kept;
    }

    /// The past of a site may be read in no other graph but by a site of that graph.
    fn nobody_else_reads_pasts(&mut self, model: &Model, main: &GraphProto) {
        let mut served: HashMap<String, HashSet<Scope>> = HashMap::new();
        for placed in &self.sites {
            for past in placed.caches().filter_map(|c| c.past.clone()) {
                served.entry(past).or_default().insert(placed.scope.clone());
            }
        }
        let mut clashes: HashMap<String, Reason> = HashMap::new();
        visit(model, main, output_facts, &mut |scope, _, graph, facts| {
            for (past, scopes) in &served {
                if !scopes.contains(scope)
                    && let Some(reason) = foreign_reader(graph, facts, past)
                {
                    clashes.insert(past.clone(), reason);
                }
            }
        });
        let (kept, refused): (Vec<_>, Vec<_>) = std::mem::take(&mut self.sites)
            .into_iter()
            .partition(|placed| {
                !placed
                    .caches()
                    .filter_map(|c| c.past.as_ref())
                    .any(|p| clashes.contains_key(p))
            });
        self.sites = kept;
        for placed in refused {
            let reason = placed
                .caches()
                .filter_map(|c| c.past.as_ref())
                .find_map(|p| clashes.get(p))
                .cloned();
            if let Some(reason) = reason {
                self.reject(main, &placed, reason);
            }
        }
    }

    fn reject(&mut self, main: &GraphProto, placed: &Placed, reason: Reason) {
        let node = placed
            .scope
            .get(main)
            .and_then(|g| g.node.get(placed.site.score.0));
        self.in_vain
            .extend(placed.origin.as_ref().map(|o| o.label.clone()));
        self.rejects.push(Reject {
            layer: placed.site.layer,
            node: node.map_or_else(String::new, |n| label(n).to_owned()),
            reason,
        });
    }
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

/// Calls of functions that hold attention and cannot be put in place of their calls.
fn calls_of(graph: &Graph, kept: &BTreeMap<Key, String>) -> Vec<Reject> {
    let reject = |(_, node): (_, &NodeProto)| {
        let detail = kept.get(&called(node))?;
        Some(Reject {
            layer: 0,
            node: label(node).to_owned(),
            reason: Reason::UnsupportedOperator {
                op: format!("{}.{}", node.domain(), node.op_type()),
                detail: detail.clone(),
            },
        })
    };
    graph.nodes().filter_map(reject).collect()
}

/// A node of a graph without a site that computes with `past`, or needs a size of it that changes.
fn foreign_reader(graph: &Graph, facts: &Facts, past: &str) -> Option<Reason> {
    for usage in graph.uses(past).iter().filter(|u| u.input.is_some()) {
        let node = graph.node(usage.node)?;
        if !is_op(node, "Shape") {
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
