//! The passes in their order.

pub mod changes;
pub mod error;
pub mod options;
mod seam;

use std::collections::{BTreeMap, HashSet};

use crate::analysis::layer::Factorize;
use crate::analysis::understand::{Understood, understand};
use crate::factor::Ranks;
use crate::facts::scoped::visit;
use crate::forms::Store;
use crate::graph::cleanup::{Live, cleanup};
use crate::graph::functions::{calls, key_of};
use crate::graph::inline::inline;
use crate::graph::patch::{PatchError, apply};
use crate::graph::scopes::Scope;
use crate::graph::verify::{VerifyError, verify};
use crate::onnx::stored::Model;
use crate::operators::{Target, is_attention, output_facts};
use crate::pipeline::changes::{Changes, Outlets, RewrittenSite};
use crate::pipeline::error::RewriteError;
use crate::pipeline::options::{RewriteOptions, check};
use crate::pipeline::seam::Seams;
use crate::recognize::Recognized;
use crate::recognize::reject::Reject;
use crate::recognize::site::Site;

/// What a model holds.
pub type Inspection = Recognized;

/// What was done to a model.
#[derive(Debug, Clone)]
pub struct Rewritten {
    /// Every rewritten attention.
    pub sites: Vec<RewrittenSite>,
    /// Those left as they were.
    pub rejects: Vec<Reject>,
}

/// Why a model could not be looked into.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InspectError {
    /// It is broken.
    #[error(transparent)]
    Malformed(#[from] VerifyError),
    /// Its operators could not be spelled out.
    #[error("internal error, an operator cannot be spelled out: {0}")]
    Spell(#[from] PatchError),
}

/// Finds every attention of `model`.
pub fn inspect(model: &Model) -> Result<Inspection, InspectError> {
    verify(&model.proto)?;
    let inlined = inline(&model.proto, is_attention);
    let proto = inlined.as_ref().map(|i| &i.graph);
    let proto = proto.or(model.proto.graph.as_ref());
    let proto = proto.ok_or(VerifyError::NoGraph)?;
    let found = understand(model, proto, &HashSet::new(), Target::MatMul)?;
    Ok(Inspection {
        sites: found.sites.into_iter().map(|p| p.site).collect(),
        rejects: found.rejects,
        others: found.others,
    })
}

/// One attention and what would be made of it.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The attention.
    pub site: Site,
    /// Names it among those of its model.
    pub id: String,
    /// Its latent widths.
    pub ranks: Ranks,
}

/// What [`rewrite`] would do with these options, or why it would refuse. Branches that share a cache are one.
pub fn plan(model: &Model, options: &RewriteOptions) -> Result<Vec<Planned>, RewriteError> {
    verify(&model.proto).map_err(RewriteError::Malformed)?;
    let inlined = inline(&model.proto, is_attention);
    let proto = inlined.as_ref().map(|i| &i.graph);
    let proto = proto.or(model.proto.graph.as_ref());
    let proto = proto.ok_or(RewriteError::Malformed(VerifyError::NoGraph))?;
    let mut found =
        understand(model, proto, &HashSet::new(), options.target).map_err(RewriteError::Patch)?;
    check(model, &found.sites, &found.ids(), &found.rejects, options)?;
    choose(&mut found, options);
    let ids = found.ids();
    let mut seen = HashSet::new();
    let planned = found.sites.iter().zip(ids).map(|(placed, id)| Planned {
        site: placed.site.clone(),
        ranks: options.ranks_of(&id, &placed.site),
        id,
    });
    let mut planned: Vec<Planned> = planned.collect();
    let keys: Vec<String> = found
        .sites
        .iter()
        .map(|p| p.cache_key(&found.main))
        .collect();
    let mut keys = keys.into_iter();
    planned.retain(|_| keys.next().is_none_or(|key| seen.insert(key)));
    Ok(planned)
}

/// Rewrites every attention of `model` that the options ask for in place, or none of them.
///
/// `factorize` makes the factors of each attention, [`by_weights`] for example; `store` takes each new tensor as it is made;
/// `progress` is told how many sites of how many are done.
pub fn rewrite(
    model: &mut Model,
    options: &RewriteOptions,
    factorize: &mut Factorize,
    store: &mut Store,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Rewritten, RewriteError> {
    // The input has to be sound before anything is claimed about it.
    verify(&model.proto).map_err(RewriteError::Malformed)?;
    // Attention in a function is rewritten where the function is called.
    let inlined = inline(&model.proto, is_attention);
    let proto = inlined.as_ref().map(|i| &i.graph);
    let proto = proto.or(model.proto.graph.as_ref());
    let proto = proto.ok_or(RewriteError::Malformed(VerifyError::NoGraph))?;
    // Operators become primitives, and symbolic shapes prove what the primitives do.
    let mut found =
        understand(model, proto, &HashSet::new(), options.target).map_err(RewriteError::Patch)?;
    let rejects = std::mem::take(&mut found.rejects);
    check(model, &found.sites, &found.ids(), &rejects, options)?;
    if !found.in_vain.is_empty() {
        found = understand(model, proto, &found.in_vain, options.target)
            .map_err(RewriteError::Patch)?;
    }
    choose(&mut found, options);
    // Factors and new nodes, one layer at a time.
    let mut changes = Changes::new(&found);
    visit(
        model,
        &found.main,
        output_facts,
        &mut |scope, _, graph, facts| {
            let outlets = Outlets {
                factorize: &mut *factorize,
                store: &mut *store,
                progress: &mut *progress,
            };
            changes.rewrite_scope(model, scope, graph, facts, options, outlets);
        },
    );
    changes.failed?;
    let (done, patches, seams) = (changes.done, changes.patches, changes.seams);
    // From here on the graph changes, inner graphs first; then the result is looked at as critically as the input.
    let mut main = found.main;
    let before: BTreeMap<Scope, Live> = patches
        .keys()
        .filter_map(|scope| Some((scope.clone(), Live::of(scope.get(&main)?))))
        .collect();
    for (scope, patch) in patches.into_iter().rev() {
        let (Some(graph), Some(before)) = (scope.get_mut(&mut main), before.get(&scope)) else {
            continue;
        };
        apply(patch, graph).map_err(RewriteError::Patch)?;
        cleanup(graph, before);
    }
    let original = model.proto.graph.replace(main);
    let imported = model.proto.opset_import.len();
    let imports = inlined.iter().flat_map(|i| i.imports.iter().cloned());
    model.proto.opset_import.extend(imports);
    if let Err(error) = accept(model, &seams) {
        model.proto.graph = original;
        model.proto.opset_import.truncate(imported);
        return Err(error);
    }
    // A function whose calls are gone is dead.
    if let (Some(inlined), Some(main)) = (inlined, &model.proto.graph) {
        let dead = |key: &_| inlined.functions.contains(key) && !calls(main, key);
        model.proto.functions.retain(|f| !dead(&key_of(f)));
    }
    Ok(Rewritten {
        sites: done,
        rejects,
    })
}

/// Leaves out the attentions that are not to be rewritten. Branches that share a cache go together.
fn choose(found: &mut Understood, options: &RewriteOptions) {
    let Some(only) = &options.only else {
        return;
    };
    let ids = found.ids();
    let chosen = ids
        .iter()
        .zip(&found.sites)
        .filter(|(id, _)| only.contains(*id));
    let caches: HashSet<String> = chosen.map(|(_, p)| p.cache_key(&found.main)).collect();
    let main = &found.main;
    found.sites.retain(|p| caches.contains(&p.cache_key(main)));
}

fn accept(model: &Model, seams: &Seams) -> Result<(), RewriteError> {
    verify(&model.proto).map_err(RewriteError::Broken)?;
    let main = model.proto.graph.as_ref();
    let broken = main.and_then(|main| seams.broken(model, main));
    broken.map_or(Ok(()), |value| Err(RewriteError::Seam(value)))
}
