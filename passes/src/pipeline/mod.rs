//! The rewrite: analysis, patches, verification.

mod chosen;
pub mod error;
pub mod explain;
pub mod factorize;
pub mod options;
pub mod patches;
mod rotary;

use std::collections::{BTreeMap, HashSet};

use crate::analysis::identity::{CacheId, SiteId};
use crate::analysis::placed::{PlacedSite, Raising};
use crate::analysis::{Analysis, AnalysisError};
use crate::factor::Ranks;
use crate::facts::scoped::ScopeFacts;
use crate::facts::{Facts, types, wrong_declaration};
use crate::forms::join::note_in_place;
use crate::forms::{FormError, Join, Store};
use crate::graph::cleanup::{Live, cleanup};
use crate::graph::functions::{calls, key_of};
use crate::graph::patch::apply;
use crate::graph::scopes::Scope;
use crate::graph::sink::sink;
use crate::graph::verify::{VerifyError, verify};
use crate::graph::{Graph, is_op};
use crate::onnx::stored::Model;
use crate::operators::{Operators, Target};
use crate::recognize::Recognized;
use crate::recognize::append::CacheKind;
use crate::recognize::reject::Reject;
use crate::recognize::site::Site;
use chosen::choose;
use error::RewriteError;
use explain::Explanation;
use factorize::Factorize;
use options::RewriteOptions;
use patches::{Callbacks, Patches, RewrittenSite};

/// The attentions of a model: recognised ones, rejected ones with their reasons, and cross-attentions.
pub type Inspection = Recognized;

/// The result of a rewrite.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Rewritten {
    /// The rewritten attentions.
    pub sites: Vec<RewrittenSite>,
    /// How the new rows of a step are appended to the caches.
    pub join: Join,
    /// The attentions that have not been changed, because they were not recognised or cannot take the form.
    pub rejects: Vec<Reject>,
    /// The rewrite as text.
    pub explanation: Explanation,
}

impl Rewritten {
    /// The rewrite of the first attention as text, for every branch that contains it: its nodes before and after, and
    /// the changes of the model's inputs and outputs.
    pub fn explain(&self) -> String {
        let first = self.sites.first().map(|s| &s.id);
        let same = self.sites.iter().enumerate();
        let same = same.filter(|(_, s)| Some(&s.id) == first);
        self.explanation
            .of_sites(same.map(|(position, _)| position))
    }
}

/// Finds all attentions of `model`.
///
/// # Errors
/// [`AnalysisError`] if the model is malformed.
pub fn inspect(model: &Model) -> Result<Inspection, AnalysisError> {
    let found = Analysis::of(model, Target::MatMul)?;
    Ok(Inspection {
        sites: found.sites.into_iter().map(|p| p.site).collect(),
        rejects: found.rejects,
        others: found.others,
    })
}

/// One attention and the ranks that a rewrite would give it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Planned {
    /// The attention.
    pub site: Site,
    /// The unique name of the attention in its model.
    pub id: SiteId,
    /// Its ranks.
    pub ranks: Ranks,
}

/// The attentions that [`rewrite`] would rewrite with these options. One that stands in several branches counts once.
///
/// # Errors
/// [`RewriteError`] if the rewrite would be refused.
pub fn plan(
    model: &Model,
    analysis: &Analysis,
    options: &RewriteOptions,
) -> Result<Vec<Planned>, RewriteError> {
    let chosen = choose(model, analysis, options)?;
    let mut seen: HashSet<(&CacheId, usize)> = HashSet::new();
    let sites = analysis.sites.iter();
    let chosen = sites.filter(|p| chosen.caches.contains(&p.cache));
    let first = chosen.filter(|p| seen.insert((&p.cache, p.reader)));
    let planned = first.map(|placed| Planned {
        site: placed.site.clone(),
        ranks: options.ranks_of(&placed.id, &placed.site),
        id: placed.id.clone(),
    });
    Ok(planned.collect())
}

/// Rewrites in place all attentions of `model` that the options select, or none of them.
///
/// `factorize` computes the factors of each attention, as [`factorize::by_weights`] does; `store` stores each new
/// tensor; `progress` is called after each attention with (done, total).
///
/// ```
/// use gqa2mla_passes::onnx::stored::Model;
/// use gqa2mla_passes::{RewriteOptions, by_weights, inspect, rewrite};
/// use prost::Message;
///
/// let bytes = std::fs::read("../fixtures/optimum-llama/model.onnx")?;
/// let proto = gqa2mla_passes::onnx::ModelProto::decode(&*bytes)?;
/// let mut model = Model { proto, ..Model::default() };
/// assert_eq!(inspect(&model)?.sites.len(), 2);
/// let options = RewriteOptions::default();
/// let done = rewrite(&mut model, &options, &mut by_weights, &mut |tensor| Ok(tensor), &mut |_, _| {})?;
/// assert!(done.explain().contains("ranks 32 of 32"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`RewriteError`]. The model is unchanged then.
pub fn rewrite(
    model: &mut Model,
    options: &RewriteOptions,
    factorize: &mut Factorize,
    store: &mut Store,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Rewritten, RewriteError> {
    let analysis = Analysis::with(model, options.operators.clone(), options.form.target())?;
    let callbacks = Callbacks {
        factorize,
        store,
        progress,
    };
    rewrite_analysed(model, analysis, options, callbacks)
}

/// [`rewrite`] with an existing analysis, whose target must be that of the form.
///
/// # Errors
/// [`RewriteError`]. The model is unchanged then.
pub fn rewrite_analysed(
    model: &mut Model,
    mut analysis: Analysis,
    options: &RewriteOptions,
    mut callbacks: Callbacks,
) -> Result<Rewritten, RewriteError> {
    let chosen = choose(model, &analysis, options)?;
    analysis.sites.retain(|p| chosen.caches.contains(&p.cache));
    analysis.rejects.extend(chosen.left);
    analysis.rejects.sort_by_key(|reject| reject.layer);
    // Compute the factors and new nodes, one layer at a time.
    let Patches {
        by_scope,
        done,
        explained,
        ..
    } = Patches::make(model, &analysis, options, &mut callbacks)?;
    // Apply the patches, subgraphs first, and verify the result like the input.
    let mut main = analysis.main;
    let mut before: BTreeMap<Scope, Live> = by_scope
        .keys()
        .filter_map(|scope| Some((scope.clone(), Live::of(scope.get(&main)?))))
        .collect();
    for operator in &analysis.lowered {
        if let Some(live) = before.get_mut(&operator.scope) {
            let made = operator.made.iter();
            live.made_for_the_rewrite(made.filter(|v| !operator.node.output.contains(v)));
        }
    }
    for (scope, patch) in by_scope.into_iter().rev() {
        let (Some(graph), Some(before)) = (scope.get_mut(&mut main), before.get(&scope)) else {
            continue;
        };
        let choices = patch.choices();
        apply(patch, graph).map_err(RewriteError::Patch)?;
        cleanup(graph, before);
        sink(graph, &|node| {
            is_op(node, "If") && node.output.first().is_some_and(|o| choices.contains(o))
        });
    }
    if let Err(reason) = analysis.outside.give_back(&mut main) {
        let cause = FormError::Refused(reason);
        return Err(RewriteError::form(0, options.form, cause));
    }
    let raised = |placed: &PlacedSite| placed.raising == Raising::Raised;
    if analysis.sites.iter().any(raised) {
        let facts = Facts::of_main(model, &Graph::new(&main), analysis.operators.rules());
        let patch = rotary::with_operators(&Graph::new(&main), &facts);
        let before = Live::of(&main);
        apply(patch, &mut main).map_err(RewriteError::Patch)?;
        cleanup(&mut main, &before);
    }
    let original = model.proto.graph.replace(main);
    let imported = model.proto.opset_import.len();
    model.proto.opset_import.extend(analysis.imports);
    if let Err(error) = accept(model, &analysis.operators) {
        model.proto.graph = original;
        model.proto.opset_import.truncate(imported);
        // The new nodes may be inferred from a wrong declaration of the exporter, which is then the cause of the error.
        let wrong = wrong_declaration(model, &analysis.operators.rules());
        return Err(wrong.map_or(error, RewriteError::Contradicted));
    }
    // Remove functions that are no longer called.
    if let Some(main) = &model.proto.graph {
        let inlined = &analysis.inlined;
        model
            .proto
            .functions
            .retain(|f| !inlined.contains(&key_of(f)) || calls(main, &key_of(f)));
    }
    if options.join == Join::InPlace {
        let caches = analysis.sites.iter().flat_map(|placed| placed.caches());
        // A static cache has no room for the new rows behind its own.
        let growing = caches.filter(|(_, cache)| cache.kind == CacheKind::Growing);
        let pasts = growing.filter_map(|(_, cache)| cache.past.as_deref());
        note_in_place(&mut model.proto, pasts);
    }
    let explanation = original.map(|before| Explanation::of(explained, &before, &model.proto));
    Ok(Rewritten {
        sites: done,
        join: options.join,
        rejects: analysis.rejects,
        explanation: explanation.unwrap_or_default(),
    })
}

fn accept(model: &Model, operators: &Operators) -> Result<(), RewriteError> {
    verify(&model.proto).map_err(RewriteError::Broken)?;
    let main = model.proto.graph.as_ref();
    let main = main.ok_or(RewriteError::Broken(VerifyError::NoGraph))?;
    let facts = ScopeFacts::infer(model, main, &operators.rules());
    types::verify(main, &facts).map_err(|e| RewriteError::Broken(e.into()))
}
