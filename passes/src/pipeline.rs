//! The passes in their order.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::cleanup::{Live, cleanup};
use crate::error::RewriteError;
use crate::factor::{Made, Ranks, SideFactors};
use crate::facts::Facts;
use crate::graph::patch::{Patch, PatchError, apply};
use crate::graph::verify::{VerifyError, verify};
use crate::graph::{Graph, label};
use crate::inline::{calls, inline, key_of};
use crate::layer::{Factorize, Layer};
use crate::lower::Target;
use crate::model::Model;
use crate::options::{CONTEXT, LatentForm, RewriteOptions, check};
use crate::placed::Placed;
use crate::recognize::Recognized;
use crate::recognize::reject::Reject;
use crate::recognize::rotation::{Rotated, query_rotation};
use crate::recognize::rows::projected;
use crate::recognize::site::{Side, Site};
use crate::rewrite::absorbed::absorbed;
use crate::rewrite::decoupled;
use crate::rewrite::expanded::expanded;
use crate::rewrite::grouped::grouped;
use crate::rewrite::weights::{Layout, Projections, Weights, weights};
use crate::rewrite::{Names, Store};
use crate::scopes::{Scope, visit};
use crate::seam::Seams;
use crate::understand::{Understood, understand};

/// What a model holds.
pub type Inspection = Recognized;

/// What was done to one attention.
#[derive(Debug, Clone)]
pub struct RewrittenSite {
    /// The attention as it was.
    pub site: Site,
    /// Names the attention among those of its model.
    pub id: String,
    /// Latent widths of its keys and of its values.
    pub ranks: Ranks,
    /// What is expected of its keys.
    pub key: Expected,
    /// What is expected of its values.
    pub value: Expected,
}

/// What the factors of one side are expected to lose.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Weighted second moment along each direction, largest first; empty where nothing is left out or nothing is told.
    pub spectrum: Vec<f64>,
    /// Share of it that is lost, 0 to 1; `None` where no spectrum tells.
    pub loss: Option<f64>,
}

impl Expected {
    fn of(side: &SideFactors) -> Self {
        Self {
            spectrum: side.spectrum.to_vec(),
            loss: Some(side.predicted_error()),
        }
    }
}

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
    let inlined = inline(&model.proto).map(|(graph, _)| graph);
    let proto = inlined.as_ref().or(model.proto.graph.as_ref());
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
    let inlined = inline(&model.proto).map(|(graph, _)| graph);
    let proto = inlined.as_ref().or(model.proto.graph.as_ref());
    let proto = proto.ok_or(RewriteError::Malformed(VerifyError::NoGraph))?;
    let found =
        understand(model, proto, &HashSet::new(), options.target).map_err(RewriteError::Patch)?;
    let ids = found.ids();
    check(model, &found.sites, &ids, &found.rejects, options)?;
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

/// Rewrites every attention of `model` in place, or none of them.
///
/// `factorize` makes the factors of each attention, [`by_weights`] for example; `store` takes each new tensor as it is made; `progress` is told how many sites of how many are done.
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
    let (inlined, functions) = inline(&model.proto).unzip();
    let proto = inlined.as_ref().or(model.proto.graph.as_ref());
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
    // Factors and new nodes, one layer at a time.
    let mut changes = Changes::new(&found);
    visit(model, &found.main, &mut |scope, _, graph, facts| {
        let outlets = Outlets {
            factorize: &mut *factorize,
            store: &mut *store,
            progress: &mut *progress,
        };
        changes.rewrite_scope(model, scope, graph, facts, options, outlets);
    });
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
    if let Err(error) = accept(model, &seams) {
        model.proto.graph = original;
        return Err(error);
    }
    // A function whose calls are gone is dead.
    if let (Some(functions), Some(main)) = (functions, &model.proto.graph) {
        model
            .proto
            .functions
            .retain(|f| !functions.contains(&key_of(f)) || calls(main, &key_of(f)));
    }
    Ok(Rewritten {
        sites: done,
        rejects,
    })
}

/// What the caller does with the work.
struct Outlets<'o, 'f, 's> {
    factorize: &'o mut Factorize<'f>,
    store: &'o mut Store<'s>,
    progress: &'o mut dyn FnMut(usize, usize),
}

/// The patches of all graphs of a model, while they are made.
struct Changes<'u> {
    found: &'u Understood,
    names: Names,
    shared: HashMap<String, (Weights, (Expected, Expected))>,
    patches: BTreeMap<Scope, Patch>,
    seams: Seams,
    done: Vec<RewrittenSite>,
    failed: Result<(), RewriteError>,
}

impl<'u> Changes<'u> {
    fn new(found: &'u Understood) -> Self {
        Self {
            found,
            names: Names::of(&found.main),
            shared: HashMap::new(),
            patches: BTreeMap::new(),
            seams: Seams::default(),
            done: Vec::new(),
            failed: Ok(()),
        }
    }

    fn rewrite_scope(
        &mut self,
        model: &Model,
        scope: &Scope,
        graph: &Graph,
        facts: &Facts,
        options: &RewriteOptions,
        outlets: Outlets,
    ) {
        let found = self.found;
        self.seams.add(scope, graph, facts, &found.sites);
        for placed in found.sites.iter().filter(|p| p.scope == *scope) {
            if self.failed.is_err() {
                return;
            }
            let id = placed.id(graph.proto());
            let layer = Layer {
                model,
                graph,
                facts,
                site: &placed.site,
                id: &id,
                ranks: options.ranks_of(&id, &placed.site),
                context: options.context.unwrap_or(CONTEXT),
            };
            self.failed = self.rewrite_site(
                &layer,
                placed,
                options,
                &mut *outlets.factorize,
                &mut *outlets.store,
            );
            (outlets.progress)(self.done.len(), found.sites.len());
        }
    }

    fn rewrite_site(
        &mut self,
        layer: &Layer,
        placed: &Placed,
        options: &RewriteOptions,
        factorize: &mut Factorize,
        store: &mut Store,
    ) -> Result<(), RewriteError> {
        let Layer {
            graph, site, ranks, ..
        } = *layer;
        let (rotated, layout) = expansion(layer, placed, options)?;
        let prefix = self.names.prefix(graph.node(site.score).map_or("", label));
        // Branches that fill and read one cache have to agree on its basis.
        let key = format!(
            "{} {} {}",
            placed.cache_key(&self.found.main),
            site.key.scale,
            site.value.scale
        );
        let (weights, expected) = match self.shared.get(&key) {
            Some(known) => known.clone(),
            None => {
                let factors = factorize(layer).map_err(|cause| RewriteError::Factor {
                    layer: site.layer,
                    cause,
                })?;
                let projections = projections(layer, rotated.as_ref(), options.form);
                let (weights, tensors) = match &factors {
                    Made::Latent(factors) => weights(&prefix, site, factors, layout, &projections)?,
                    Made::Decoupled(made) => {
                        (Weights::default(), decoupled::tensors(&prefix, site, made)?)
                    }
                };
                let main = self.patches.entry(Scope::default()).or_default();
                for tensor in tensors {
                    main.initializers
                        .push(store(tensor).map_err(RewriteError::Store)?);
                }
                let expected = match &factors {
                    Made::Latent(f) => (Expected::of(&f.key), Expected::of(&f.value)),
                    // What dropping the rotation costs is not in any spectrum.
                    Made::Decoupled(_) => Default::default(),
                };
                self.shared.insert(key, (weights.clone(), expected.clone()));
                (weights, expected)
            }
        };
        let kept = placed.origin.as_ref().and_then(|o| o.grouped.as_ref());
        let mut patch = match (options.target, kept, &rotated) {
            (_, _, Some(Rotated::By(keys))) if options.form == LatentForm::Decoupled => {
                let queries = query_rotation(graph, layer.facts, site);
                let patch = match &queries {
                    Rotated::By(queries) if !queries.packed => {
                        let rotations = (keys, queries);
                        decoupled::decoupled(graph, layer.facts, prefix, site, rotations, ranks)
                    }
                    _ => None,
                };
                patch.ok_or(RewriteError::Form {
                    layer: site.layer,
                    reason: "the rotation of its queries is not followed".to_owned(),
                })?
            }
            (_, _, Some(rotated)) => {
                let patch = expanded(graph, layer.facts, prefix, site, rotated, &weights, ranks);
                patch.ok_or(RewriteError::Form {
                    layer: site.layer,
                    reason: "a shape in its rotation does not fit all positions".to_owned(),
                })?
            }
            (Target::Gqa, Some(operator), None) => {
                grouped(graph, prefix, site, operator, &weights, ranks.key)
            }
            _ => absorbed(graph, prefix, site, &weights, ranks),
        };
        for (scope, change) in placed.interface(&self.found.main, &mut patch) {
            let outer = self.patches.entry(scope).or_default();
            outer.merge(change).map_err(RewriteError::Patch)?;
        }
        let own = self.patches.entry(placed.scope.clone()).or_default();
        own.merge(patch).map_err(RewriteError::Patch)?;
        self.done.push(RewrittenSite {
            site: site.clone(),
            id: layer.id.to_owned(),
            ranks,
            key: expected.0,
            value: expected.1,
        });
        Ok(())
    }
}

/// What the latents of the expanded form are folded with: the projections of keys before rotation and of values, where
/// they are plainly there.
fn projections(layer: &Layer, rotated: Option<&Rotated>, form: LatentForm) -> Projections {
    let rows = match rotated {
        _ if form != LatentForm::Expanded => return Projections::default(),
        Some(Rotated::By(rotation)) => &rotation.input,
        _ => &layer.site.key.new,
    };
    let of = |rows: &str, side: &Side| {
        let width = layer.site.kv_heads * side.size;
        projected(layer.model, layer.graph, layer.facts, rows, width)
    };
    Projections {
        key: of(rows, &layer.site.key),
        value: of(&layer.site.value.new, &layer.site.value),
    }
}

/// What the form that is asked for needs to know, and how its factors lie in memory.
fn expansion(
    layer: &Layer,
    placed: &Placed,
    options: &RewriteOptions,
) -> Result<(Option<Rotated>, Layout), RewriteError> {
    if options.form == LatentForm::Absorbed {
        return Ok((None, Layout::Absorbed));
    }
    let refuse = |reason: &str| RewriteError::Form {
        layer: layer.site.layer,
        reason: reason.to_owned(),
    };
    if options.target == Target::Gqa {
        return Err(refuse("the target gqa caches what its operator reads"));
    }
    if placed.scope != Scope::default() {
        return Err(refuse("it stands in a branch"));
    }
    if !layer.site.is_cached() {
        return Err(refuse("it has no cache"));
    }
    let rotated = layer.rotation();
    match &rotated {
        Rotated::Unknown(missing) => Err(refuse(&format!(
            "the rotation of its keys is not recognised: {missing}"
        ))),
        Rotated::By(rotation) if rotation.packed && options.form == LatentForm::Decoupled => {
            Err(refuse("its heads are split after the rotation"))
        }
        Rotated::By(rotation)
            if options.form == LatentForm::Decoupled
                && !rotation.interleaved
                && !rotation.whole =>
        {
            Err(refuse("only a part of each head is rotated"))
        }
        Rotated::No if options.form == LatentForm::Decoupled => {
            Err(refuse("its keys are not rotated"))
        }
        Rotated::By(rotation) if rotation.packed => Ok((Some(rotated), Layout::Packed)),
        _ => Ok((Some(rotated), Layout::Expanded)),
    }
}

fn accept(model: &Model, seams: &Seams) -> Result<(), RewriteError> {
    verify(&model.proto).map_err(RewriteError::Broken)?;
    let main = model.proto.graph.as_ref();
    let broken = main.and_then(|main| seams.broken(model, main));
    broken.map_or(Ok(()), |value| Err(RewriteError::Seam(value)))
}
