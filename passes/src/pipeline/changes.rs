//! What is to be done to each attention: its factors, and the patches that make its new nodes, while no graph changes yet.

use std::collections::{BTreeMap, HashMap};

use crate::analysis::layer::{Factorize, Layer};
use crate::analysis::placed::Placed;
use crate::analysis::understand::Understood;
use crate::factor::{Made, Ranks, SideFactors};
use crate::facts::Facts;
use crate::forms::absorbed::absorbed;
use crate::forms::decoupled;
use crate::forms::expanded::expanded;
use crate::forms::grouped::grouped;
use crate::forms::weights::{Layout, Projections, Weights, weights};
use crate::forms::{Names, Store};
use crate::graph::patch::Patch;
use crate::graph::scopes::Scope;
use crate::graph::{Graph, label};
use crate::onnx::stored::Model;
use crate::operators::Target;
use crate::pipeline::error::RewriteError;
use crate::pipeline::options::{CONTEXT, LatentForm, RewriteOptions};
use crate::pipeline::seam::Seams;
use crate::recognize::rotation::{Rotated, query_rotation};
use crate::recognize::site::{Side, Site};
use crate::weights::rows::projected;

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

/// What the caller does with the work.
pub struct Outlets<'o, 'f, 's> {
    /// Makes factors.
    pub factorize: &'o mut Factorize<'f>,
    /// Takes each new tensor.
    pub store: &'o mut Store<'s>,
    /// Is told how many sites of how many are done.
    pub progress: &'o mut dyn FnMut(usize, usize),
}

/// The patches of all graphs of a model, while they are made.
pub struct Changes<'u> {
    found: &'u Understood,
    names: Names,
    shared: HashMap<String, (Weights, (Expected, Expected))>,
    /// What changes in each graph.
    pub patches: BTreeMap<Scope, Patch>,
    /// What has to fit again when the graphs have changed.
    pub seams: Seams,
    /// Every attention that is done.
    pub done: Vec<RewrittenSite>,
    /// The first refusal.
    pub failed: Result<(), RewriteError>,
}

impl<'u> Changes<'u> {
    /// None yet.
    pub fn new(found: &'u Understood) -> Self {
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

    /// Adds the changes of every attention that stands in `graph`.
    pub fn rewrite_scope(
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
                let projections = projections(layer, placed, rotated.as_ref(), options.form);
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
/// they are plainly there. Branches that share factors have an input each, so that nothing is folded in them.
fn projections(
    layer: &Layer,
    placed: &Placed,
    rotated: Option<&Rotated>,
    form: LatentForm,
) -> Projections {
    if form != LatentForm::Expanded || placed.scope != Scope::default() {
        return Projections::default();
    }
    let rows = match rotated {
        Some(Rotated::By(rotation)) if rotation.part.is_some() => None,
        Some(Rotated::By(rotation)) => Some(&rotation.input),
        _ => Some(&layer.site.key.new),
    };
    let of = |rows: &str, side: &Side| {
        let width = layer.site.kv_heads * side.size;
        projected(layer.model, layer.graph, layer.facts, rows, width)
    };
    Projections {
        key: rows.and_then(|rows| of(rows, &layer.site.key)),
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
    if placed.scope != Scope::default() && options.form == LatentForm::Decoupled {
        return Err(refuse("it stands in a branch"));
    }
    if !layer.site.is_cached() && options.form == LatentForm::Decoupled {
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
                && (rotation.part.is_some() || !rotation.interleaved && !rotation.whole) =>
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
