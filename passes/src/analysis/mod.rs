//! What a model holds, over all of its graphs: attentions, where they stand, and what they are made of. Computed once a
//! model, and passed on to whoever inspects, plans, observes or rewrites it.

mod caches;
mod directions;
pub mod identity;
pub mod observe;
pub mod placed;
mod spelling;
pub mod view;

use std::collections::{BTreeMap, HashSet};

use crate::facts::scoped::{ScopeFacts, Scoped};
use crate::facts::types;
use crate::graph::functions::{Functions, Key, called};
use crate::graph::inline::inline;
use crate::graph::patch::PatchError;
use crate::graph::scopes::{Body, Scope};
use crate::graph::verify::{OperandError, VerifyError, verify};
use crate::graph::{Graph, label};
use crate::onnx::stored::Model;
use crate::onnx::{GraphProto, NodeProto, OperatorSetIdProto};
use crate::operators::{Lowered, Operators, Target, lower};
use crate::recognize::reject::{Reason, Reject};
use crate::recognize::{Recognized, recognize};
use caches::Refusals;
use directions::Directions;
use identity::CacheId;
use placed::PlacedSite;
use spelling::spell_out;

pub use spelling::SpelledOperator;
pub use view::SiteView;

/// A model with its functions inlined and its operators spelled out, and the attentions it holds.
#[derive(Clone)]
pub struct Analysis {
    /// The main graph, after functions with attention are inlined and attention operators are spelled out.
    pub main: GraphProto,
    /// The facts of the main graph and of all graphs inside it.
    pub facts: ScopeFacts,
    /// The attentions that are proved.
    pub sites: Vec<PlacedSite>,
    /// Those that look like one and are not proved.
    pub rejects: Vec<Reject>,
    /// Attentions of another kind, which no rewrite concerns: cross-attention.
    pub others: Vec<Reject>,
    /// The operators that are known.
    pub operators: Operators,
    /// The operators that were spelled out.
    pub spelled: Vec<SpelledOperator>,
    /// The functions that were inlined.
    pub inlined: HashSet<Key>,
    /// Operator sets that the inlined bodies need and that the model does not import.
    pub imports: Vec<OperatorSetIdProto>,
}

/// Why a model could not be analysed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AnalysisError {
    /// The graph is broken.
    #[error(transparent)]
    Malformed(#[from] VerifyError),
    /// The operators could not be spelled out.
    #[error("internal error, an operator cannot be spelled out: {0}")]
    Spell(#[from] PatchError),
}

impl Analysis {
    /// [`Analysis::with`] the operators of this library.
    ///
    /// # Errors
    /// [`AnalysisError`] when the model is not well-formed.
    pub fn of(model: &Model, target: Target) -> Result<Self, AnalysisError> {
        Self::with(model, Operators::default(), target)
    }

    /// Analyses `model`; those of `operators` that it calls are spelled out as `target` needs them.
    ///
    /// The passes: verify, inline, infer facts, spell out operators, infer the facts of what they have become, recognise,
    /// follow caches across graphs.
    ///
    /// # Errors
    /// [`AnalysisError`] when the model is not well-formed.
    pub fn with(
        model: &Model,
        operators: Operators,
        target: Target,
    ) -> Result<Self, AnalysisError> {
        verify(&model.proto)?;
        // Attention in a function is rewritten where the function is called.
        let is_attention = |node: &NodeProto| operators.is_attention(node);
        let rules = operators.rules();
        let inlined = inline(&model.proto, &is_attention);
        let main = inlined.as_ref().map(|i| &i.graph);
        let main = main.or(model.proto.graph.as_ref());
        let main = main.ok_or(VerifyError::NoGraph)?;
        let mut lowered = BTreeMap::new();
        let before = ScopeFacts::infer_and_visit(model, main, &rules, &mut |scoped| {
            types::verify_graph(scoped)?;
            let one = lower(scoped.graph, scoped.facts, &operators, target);
            lowered.insert(scoped.scope.clone(), one);
            Ok(())
        });
        let before = before.map_err(|e: OperandError| VerifyError::from(e))?;
        let spelled = spell_out(main, lowered)?;
        let facts = match spelled.operators.is_empty() {
            true => before,
            false => ScopeFacts::infer(model, &spelled.main, &rules),
        };
        let functions = Functions::of(&model.proto, &is_attention);
        let (inlined, imports) = inlined
            .map(|i| (i.functions, i.imports))
            .unwrap_or_default();
        let mut all = Self {
            main: spelled.main,
            facts,
            sites: Vec::new(),
            rejects: Vec::new(),
            others: Vec::new(),
            operators,
            spelled: spelled.operators,
            inlined,
            imports,
        };
        all.recognize(&functions.kept, &spelled.lowered);
        all.reject(caches::caches_that_do_not_reach_the_interface(
            &all.sites, &all.main,
        ));
        all.reject(caches::caches_that_come_back_as_others(
            &all.sites, &all.main,
        ));
        all.reject(caches::pasts_that_others_read(
            &all.sites, &all.main, &all.facts,
        ));
        all.reject(caches::presents_that_others_read(
            &all.sites, &all.main, &all.facts,
        ));
        all.rejects.sort_by_key(|r| r.layer);
        Ok(all)
    }

    /// Calls `visit` on every attention, graph by graph, outer graphs first.
    ///
    /// # Errors
    /// The first error of `visit`.
    pub fn visit<E>(
        &self,
        model: &Model,
        visit: &mut dyn FnMut(&SiteView) -> Result<(), E>,
    ) -> Result<(), E> {
        self.facts.visit(&self.main, &mut |scoped| {
            let own = self.sites.iter().filter(|p| p.scope == *scoped.scope);
            for placed in own {
                visit(&SiteView::new(model, scoped.graph, scoped.facts, placed))?;
            }
            Ok(())
        })
    }

    fn recognize(
        &mut self,
        kept_functions: &BTreeMap<Key, String>,
        lowered: &BTreeMap<Scope, Lowered>,
    ) {
        let (mut sites, mut rejects, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let mut directions = Directions::default();
        self.facts.for_each(&self.main, &mut |scoped| {
            rejects.extend(calls_of(scoped.graph, kept_functions));
            let Some(lowered) = lowered.get(scoped.scope) else {
                return;
            };
            let found = recognize(scoped.graph, scoped.facts, &lowered.refused);
            let (kept, carried) = placed(&self.main, scoped, lowered, &found);
            directions.look(scoped, &kept);
            sites.extend(kept);
            rejects.extend(carried);
            rejects.extend(found.rejects);
            others.extend(found.others);
        });
        directions.tell(&mut sites);
        self.sites = sites;
        self.rejects = rejects;
        self.others = others;
    }

    /// Turns the sites at the refused positions into rejects, and those that fill the same cache in another branch.
    fn reject(&mut self, mut refused: Refusals) {
        let caches: Vec<(CacheId, Reason)> = refused
            .iter()
            .filter_map(|(position, reason)| {
                Some((self.sites.get(*position)?.cache.clone(), reason.clone()))
            })
            .collect();
        for (position, placed) in self.sites.iter().enumerate() {
            let known = refused.iter().any(|(known, _)| *known == position);
            let same = caches.iter().find(|(cache, _)| *cache == placed.cache);
            if let (Some((_, reason)), false) = (same, known) {
                refused.push((position, reason.clone()));
            }
        }
        refused.sort_by_key(|(position, _)| std::cmp::Reverse(*position));
        let mut rejects: Vec<Reject> = refused
            .into_iter()
            .map(|(position, reason)| {
                let placed = self.sites.remove(position);
                let graph = placed.scope.get(&self.main);
                let node = graph.and_then(|g| g.node.get(placed.site.score.0));
                Reject {
                    layer: placed.site.layer,
                    node: node.map_or_else(String::new, |n| label(n).to_owned()),
                    reason,
                }
            })
            .collect();
        rejects.reverse();
        self.rejects.extend(rejects);
    }
}

/// The sites of one graph with their places, and rejects of those whose cache a loop carries.
fn placed(
    main: &GraphProto,
    scoped: &Scoped,
    lowered: &Lowered,
    found: &Recognized,
) -> (Vec<PlacedSite>, Vec<Reject>) {
    let (mut kept, mut rejects) = (Vec::new(), Vec::new());
    for site in &found.sites {
        let score = scoped.graph.node(site.score);
        if scoped.body == Body::Iterated && site.is_cached() {
            rejects.push(Reject {
                layer: site.layer,
                node: score.map_or_else(String::new, |n| label(n).to_owned()),
                reason: Reason::UnsupportedOperator {
                    op: "Loop".to_owned(),
                    detail: "the attention's cache is carried from one iteration to the next"
                        .to_owned(),
                },
            });
            continue;
        }
        let score = score.and_then(|n| n.output.first());
        let origin = score.and_then(|s| lowered.origins.get(s)).cloned();
        let mut site = site.clone();
        if let Some(origin) = &origin {
            site.dialect = origin.dialect;
        }
        kept.push(PlacedSite::new(main, scoped.scope, site, origin));
    }
    (kept, rejects)
}

/// Calls of the functions `kept`, which hold attention and cannot be put in place of their calls, with the reason.
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
