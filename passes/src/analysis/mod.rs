//! The analysis of a model: its attentions in all its graphs, and the inferred types and shapes. It is computed once
//! and shared by inspection, planning, calibration and rewriting.

pub mod cache_layout;
mod caches;
mod directions;
mod found;
pub mod identity;
mod layers;
mod lowering;
pub mod new_rows;
pub mod observe;
pub mod outside;
pub mod placed;
pub mod raise;
mod reordered;
pub mod view;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use crate::facts::scoped::ScopeFacts;
use crate::facts::types;
use crate::graph::functions::{Functions, Key};
use crate::graph::inline::inline;
use crate::graph::patch::PatchError;
use crate::graph::scopes::Scope;
use crate::graph::verify::{OperandError, VerifyError, verify};
use crate::onnx::stored::Model;
use crate::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::operators::{Lowered, Operators, Target, lower};
use crate::recognize::recognize;
use crate::recognize::reject::{Reason, Reject};
use cache_layout::{Laid, laid, standard};
use caches::Refusals;
use directions::Directions;
use found::{calls_of, placed, tell_what_else};
use identity::CacheId;
use layers::Layers;
use lowering::lower_operators;
use outside::Outside;
use placed::{PlacedSite, Raising};
use raise::{Raise, operator_set};

pub use lowering::LoweredOperator;
pub use view::SiteView;

/// A model with attention functions inlined and attention operators expanded into primitives, and its attentions.
#[derive(Clone)]
pub struct Analysis {
    /// The main graph, after inlining and expansion.
    pub main: GraphProto,
    /// The facts of the main graph and of all its subgraphs.
    pub facts: ScopeFacts,
    /// The recognised attentions.
    pub sites: Vec<PlacedSite>,
    /// Attention-like subgraphs that were not recognised, with reasons.
    pub rejects: Vec<Reject>,
    /// Cross-attentions, to which no rewrite applies.
    pub others: Vec<Reject>,
    /// The supported fused attention operators.
    pub operators: Operators,
    /// The fused operators that were expanded.
    pub lowered: Vec<LoweredOperator>,
    /// The model-local functions that were inlined.
    pub inlined: HashSet<Key>,
    /// The caches of the interface that are whole caches [B, G, length, d] in `main` alone.
    pub outside: Outside,
    /// Operator sets that inlined bodies and raised attentions need and that the model does not import.
    pub imports: Vec<OperatorSetIdProto>,
}

/// The error of a model that cannot be analysed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AnalysisError {
    /// The graph is malformed.
    #[error(transparent)]
    Malformed(#[from] VerifyError),
    /// An operator could not be expanded.
    #[error("internal error, an operator cannot be lowered: {0}")]
    Lower(#[from] PatchError),
}

impl Analysis {
    /// [`Analysis::with`] all operators that this library supports.
    ///
    /// # Errors
    /// [`AnalysisError`] if the model is malformed.
    pub fn of(model: &Model, target: Target) -> Result<Self, AnalysisError> {
        Self::with(model, Operators::default(), target)
    }

    /// Analyses `model`. Its nodes of the fused `operators` are expanded into primitives as far as `target` requires
    /// it. For the target `gqa`, attentions that are written as products are raised to `GroupQueryAttention`
    /// ([`mod@raise`]), and the graph is analysed again.
    ///
    /// The passes: verify, inline, make outputs with new rows whole ([`new_rows`]), bring transposed caches into order
    /// ([`cache_layout`]) if more attentions are recognised then, infer facts, expand operators, infer
    /// facts again if anything was expanded, recognise attentions, check caches across subgraphs.
    ///
    /// # Errors
    /// [`AnalysisError`] if the model is malformed.
    pub fn with(
        model: &Model,
        operators: Operators,
        target: Target,
    ) -> Result<Self, AnalysisError> {
        verify(&model.proto)?;
        // Attention in a function can only be rewritten after inlining.
        let is_attention = |node: &NodeProto| operators.is_attention(node);
        let inlined = inline(&model.proto, &is_attention);
        let main = inlined.as_ref().map(|i| &i.graph);
        let main = main.or(model.proto.graph.as_ref());
        let main = main.ok_or(VerifyError::NoGraph)?;
        let whole = new_rows::whole(main);
        let main = whole.as_ref().map_or(main, |whole| &whole.graph);
        let functions = Functions::of(&model.proto, &is_attention);
        let mut all = Self::of_main(model, main, operators.clone(), target, &functions)?;
        // Only caches that attentions are recognised by are brought into order.
        let mut caches = laid(main);
        while let Some(standard) = standard(main, std::mem::take(&mut caches)) {
            let graph = &standard.graph;
            let Ok(ordered) = Self::of_main(model, graph, operators.clone(), target, &functions)
            else {
                break;
            };
            let read = |cache: &Laid| ordered.reads(&cache.past) && !all.reads(&cache.past);
            if standard.caches.iter().all(read) {
                all = ordered;
                all.outside.laid = standard.caches;
                break;
            }
            caches = standard.caches.into_iter().filter(read).collect();
            tell_what_else(&mut all.rejects, &ordered.rejects);
        }
        all.outside.new_rows = whole.map_or_else(Vec::new, |whole| whole.outputs);
        if target == Target::Gqa && !all.has_operator() {
            all.replace_products(model, &functions)?;
        }
        if let Some(inlined) = inlined {
            all.inlined = inlined.functions;
            all.imports.extend(inlined.imports);
        }
        let imported = &model.proto.opset_import;
        let is_new = |set: &OperatorSetIdProto| imported.iter().all(|o| o.domain() != set.domain());
        all.imports.retain(is_new);
        Ok(all)
    }

    /// The analysis of `main`, the main graph of `model` with functions inlined.
    fn of_main(
        model: &Model,
        main: &GraphProto,
        operators: Operators,
        target: Target,
        functions: &Functions,
    ) -> Result<Self, AnalysisError> {
        let rules = operators.rules();
        let mut lowered = BTreeMap::new();
        let before = ScopeFacts::infer_and_visit(model, main, &rules, &mut |scoped| {
            types::verify_graph(scoped)?;
            let one = lower(scoped.graph, scoped.facts, &operators, target);
            lowered.insert(scoped.scope.clone(), one);
            Ok(())
        });
        let before = before.map_err(|e: OperandError| VerifyError::from(e))?;
        let lowered = lower_operators(main, lowered)?;
        let facts = match lowered.operators.is_empty() {
            true => before,
            false => ScopeFacts::infer(model, &lowered.main, &rules),
        };
        let mut all = Self {
            main: lowered.main,
            facts,
            sites: Vec::new(),
            rejects: Vec::new(),
            others: Vec::new(),
            operators,
            lowered: lowered.operators,
            inlined: HashSet::new(),
            outside: Outside::default(),
            imports: Vec::new(),
        };
        all.recognize(&functions.kept, &lowered.lowered);
        // A refused site keeps its cache, so that sites that share this cache must be refused in the next round.
        let mut left = usize::MAX;
        while all.sites.len() < left {
            left = all.sites.len();
            all.refuse_caches();
        }
        all.rejects.sort_by_key(|r| r.layer);
        Ok(all)
    }

    /// Whether a recognised attention reads the cache with the past input `past`.
    fn reads(&self, past: &str) -> bool {
        let mut caches = self.sites.iter().flat_map(PlacedSite::caches);
        caches.any(|(_, cache)| cache.past.as_deref() == Some(past))
    }

    /// Whether an attention is written as the operator that the target `gqa` keeps.
    fn has_operator(&self) -> bool {
        let has_operator = |p: &PlacedSite| p.origin.as_ref().is_some_and(|o| o.grouped.is_some());
        self.sites.iter().any(has_operator)
    }

    /// Puts the operator in place of products, or tells every attention why not.
    fn replace_products(
        &mut self,
        model: &Model,
        functions: &Functions,
    ) -> Result<(), AnalysisError> {
        match (self.outside.hinders_operator(), self.rejects.is_empty()) {
            (Some(reason), _) => self.hinder(reason),
            (None, false) => self.hinder("not all attentions of the model are recognised"),
            (None, true) if !self.others.is_empty() => {
                self.hinder("the model also has cross-attentions, which stay products");
            }
            (None, true) => self.raise(model, functions)?,
        }
        Ok(())
    }

    /// Raises all attentions, or none of them: then each knows its reason, or that of the first that has one.
    fn raise(&mut self, model: &Model, functions: &Functions) -> Result<(), AnalysisError> {
        let mut raise = Raise::default();
        self.visit(model, &mut |view| raise.add(view))?;
        match raise.finish(&self.main, &self.lowered)? {
            Ok(raised) => {
                let operators = std::mem::take(&mut self.operators);
                *self = Self::of_main(model, &raised, operators, Target::Gqa, functions)?;
                self.imports.push(operator_set());
                let sites = self.sites.iter_mut();
                sites.for_each(|placed| placed.raising = Raising::Raised);
            }
            Err(hindrances) => {
                let first = self.sites.iter().find_map(|placed| {
                    let reason = hindrances.get(&placed.id)?;
                    Some(format!("layer {}: {reason}", placed.site.layer))
                });
                self.hinder(&first.unwrap_or_default());
                for placed in &mut self.sites {
                    if let Some(own) = hindrances.get(&placed.id) {
                        placed.raising = Raising::Hindered(own.clone());
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells every attention why none was raised.
    fn hinder(&mut self, reason: &str) {
        for placed in &mut self.sites {
            placed.raising = Raising::Hindered(reason.to_owned());
        }
    }

    /// Refuses the sites whose caches break a rule across the subgraphs.
    fn refuse_caches(&mut self) {
        self.reject(caches::caches_that_do_not_reach_the_interface(
            &self.sites,
            &self.main,
        ));
        self.reject(caches::caches_that_come_back_as_others(
            &self.sites,
            &self.main,
        ));
        self.reject(caches::pasts_that_others_read(
            &self.sites,
            &self.main,
            &self.facts,
        ));
        self.reject(caches::presents_that_others_read(
            &self.sites,
            &self.main,
            &self.facts,
        ));
    }

    /// `model`, the analysed one, with the caches at its interface as the analysis sees them.
    #[must_use]
    pub fn with_caches_in_order<'m>(&self, model: &'m ModelProto) -> Cow<'m, ModelProto> {
        match self.outside.laid.is_empty() {
            true => Cow::Borrowed(model),
            false => Cow::Owned(ModelProto {
                graph: Some(self.main.clone()),
                ..model.clone()
            }),
        }
    }

    /// The number of attentions that are recognised; an attention in the branches of an `If` counts once, and only if
    /// it is recognised in each of them.
    pub fn recognised(&self) -> usize {
        let refused: HashSet<usize> = self.rejects.iter().map(|r| r.layer).collect();
        let mut proved: HashSet<usize> = self.sites.iter().map(|p| p.site.layer).collect();
        proved.retain(|layer| !refused.contains(layer));
        proved.len()
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
                let readers = self.sites.iter();
                let readers = readers
                    .filter(|p| p.scope == placed.scope && p.cache == placed.cache)
                    .collect();
                let view = SiteView::new(model, (scoped.graph, scoped.facts), placed, readers);
                visit(&view)?;
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
        let mut layers = Layers::default();
        let mut directions = Directions::default();
        self.facts.for_each(&self.main, &mut |scoped| {
            let within = scoped.scope.describe(&self.main);
            let named = |rejects: Vec<Reject>| {
                let within = within.clone();
                rejects.into_iter().map(move |reject| Reject {
                    within: within.clone(),
                    ..reject
                })
            };
            let first = layers.first_of(scoped.scope);
            let calls = calls_of(scoped.graph, kept_functions, first);
            let first = first + calls.len();
            layers.count(scoped.scope, first);
            rejects.extend(named(calls));
            let Some(lowered) = lowered.get(scoped.scope) else {
                return;
            };
            let found = recognize(scoped.graph, scoped.facts, &lowered.refused, first);
            layers.count(scoped.scope, first + found.attentions());
            let (kept, carried) = placed(&self.main, scoped, lowered, &found);
            directions.look(scoped, &kept);
            sites.extend(kept);
            rejects.extend(named(carried));
            rejects.extend(named(found.rejects));
            others.extend(named(found.others));
        });
        directions.tell(&mut sites);
        self.sites = sites;
        self.rejects = rejects;
        self.others = others;
    }

    /// Turns the sites at the refused positions into rejects, together with the sites of other branches that fill the
    /// same cache.
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
                placed.reject(&self.main, reason)
            })
            .collect();
        rejects.reverse();
        self.rejects.extend(rejects);
    }
}
