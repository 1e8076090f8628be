//! The passes in their order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;

use crate::cleanup::{Live, cleanup};
use crate::factor::{Moments, SideMoments, SpectralError, factor, weights_only};
use crate::facts::Facts;
use crate::graph::patch::{Patch, PatchError, apply};
use crate::graph::verify::{VerifyError, verify};
use crate::graph::{Graph, label};
use crate::inline::{calls, inline, key_of};
use crate::lower::Target;
use crate::model::Model;
use crate::recognize::Recognized;
use crate::recognize::projection::projection;
use crate::recognize::reject::Reject;
use crate::recognize::site::{Side, Site};
use crate::rewrite::absorbed::absorbed;
use crate::rewrite::grouped::{RANK_STEP, grouped};
use crate::rewrite::weights::{Weights, weights};
use crate::rewrite::{Names, Store, TensorRange};
use crate::scopes::{Scope, visit};
use crate::seam::Seams;
use crate::understand::{Placed, Understood, understand};

/// The oldest opset whose operators the rewrite emits: `Unsqueeze` takes its axes as an input since 13.
pub const OLDEST_OPSET: i64 = 13;

/// What a model holds.
pub type Inspection = Recognized;

/// How a model is rewritten.
#[derive(Debug, Clone, Copy, Default)]
pub struct RewriteOptions {
    /// Latent width of keys and of values, 1 to the full rank; `None` is the full rank, at which nothing is lost.
    pub rank: Option<usize>,
    /// Rewrite what is recognised even where some attentions are not.
    pub allow_partial: bool,
    /// What the rewritten attentions run as.
    pub target: Target,
}

/// What was done to one attention.
#[derive(Debug, Clone)]
pub struct RewrittenSite {
    /// The attention as it was.
    pub site: Site,
    /// Latent width of its keys and of its values.
    pub rank: usize,
    /// Share of the keys' second moment that is expected to be lost, 0 to 1.
    pub key_error: f64,
    /// The same for the values.
    pub value_error: f64,
}

/// What was done to a model.
#[derive(Debug, Clone)]
pub struct Rewritten {
    /// Every rewritten attention.
    pub sites: Vec<RewrittenSite>,
    /// Those left as they were.
    pub rejects: Vec<Reject>,
}

/// Why a model was not rewritten; it is unchanged then.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// The graph was broken before.
    #[error("the model is not well-formed: {0}")]
    Malformed(VerifyError),
    /// Opset too old.
    #[error(
        "the model uses opset {0}, the rewrite needs at least {OLDEST_OPSET}: export it with a newer opset, or convert it with onnx.version_converter"
    )]
    Opset(i64),
    /// No attention at all was recognised.
    #[error("nothing to rewrite: {}", misses(.0))]
    Nothing(Vec<Reject>),
    /// Only some attentions were recognised.
    #[error("{recognised} attentions recognised, {} not; pass --allow-partial to rewrite only those: {}", .rejects.len(), misses(.rejects))]
    Partial {
        /// How many were.
        recognised: usize,
        /// Those that were not.
        rejects: Vec<Reject>,
    },
    /// Rank out of range.
    #[error(
        "rank {rank} is out of range for layer {layer}: its cached heads hold {full} numbers, so the rank is 1 to {full}"
    )]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// The layer it does not fit.
        layer: usize,
        /// Its full rank.
        full: usize,
    },
    /// The target keeps an operator that the model does not have.
    #[error(
        "layer {layer} is written as {dialect}, and the target gqa keeps GroupQueryAttention: use the target matmul"
    )]
    NotGrouped {
        /// The layer.
        layer: usize,
        /// How it is written.
        dialect: &'static str,
    },
    /// A rank that the operator cannot hold.
    #[error(
        "rank {rank} of layer {layer} is no multiple of {RANK_STEP}, as GroupQueryAttention needs: use another --rank or the target matmul"
    )]
    RankStep {
        /// The rank.
        rank: usize,
        /// The layer.
        layer: usize,
    },
    /// Linear algebra.
    #[error("layer {layer}: {cause}")]
    Factor {
        /// The layer.
        layer: usize,
        /// What went wrong.
        cause: SpectralError,
    },
    /// A factor out of the type's range.
    #[error(transparent)]
    Range(#[from] TensorRange),
    /// The new tensors could not be stored.
    #[error("the new weights could not be stored: {0}")]
    Store(Box<dyn Error + Send + Sync>),
    /// The rewrite contradicts itself; nothing was changed.
    #[error("internal error, the model is unchanged: {0}")]
    Patch(PatchError),
    /// The rewritten graph is broken; nothing was changed.
    #[error("internal error, the rewritten graph is not well-formed: {0}")]
    Broken(VerifyError),
    /// A value that stays has changed its type or shape.
    #[error("internal error, the rewrite changes the type or shape of '{0}'")]
    Seam(String),
}

fn misses(rejects: &[Reject]) -> String {
    match rejects {
        [] => "no attention was found".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first}; and {} more", rest.len()),
    }
}

/// Finds every attention of `model`.
pub fn inspect(model: &Model) -> Result<Inspection, VerifyError> {
    verify(&model.proto)?;
    let inlined = inline(&model.proto).map(|(graph, _)| graph);
    let proto = inlined.as_ref().or(model.proto.graph.as_ref());
    let proto = proto.ok_or(VerifyError::NoGraph)?;
    // Patches only spell operators out here, each in its own place, so they cannot clash.
    let found = understand(model, proto, &HashSet::new(), Target::MatMul)
        .map_err(|_| VerifyError::NoGraph)?;
    Ok(Inspection {
        sites: found.sites.into_iter().map(|p| p.site).collect(),
        rejects: found.rejects,
        others: found.others,
    })
}

/// Rewrites every attention of `model` in place, or none of them.
///
/// `store` takes each new tensor as it is made; `progress` is told how many sites of how many are done.
pub fn rewrite(
    model: &mut Model,
    options: RewriteOptions,
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
    check(model, &found.sites, &rejects, options)?;
    if !found.in_vain.is_empty() {
        found = understand(model, proto, &found.in_vain, options.target)
            .map_err(RewriteError::Patch)?;
    }
    // Factors and new nodes, one layer at a time.
    let mut changes = Changes::new(&found);
    visit(model, &found.main, &mut |scope, _, graph, facts| {
        changes.rewrite_scope(model, scope, graph, facts, options, store, progress);
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

/// The patches of all graphs of a model, while they are made.
struct Changes<'u> {
    found: &'u Understood,
    names: Names,
    shared: HashMap<String, (Weights, (f64, f64))>,
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

    #[allow(clippy::too_many_arguments)] // The pipeline's own state and its two outlets, at the one place they meet.
    fn rewrite_scope(
        &mut self,
        model: &Model,
        scope: &Scope,
        graph: &Graph,
        facts: &Facts,
        options: RewriteOptions,
        store: &mut Store,
        progress: &mut dyn FnMut(usize, usize),
    ) {
        let found = self.found;
        self.seams.add(scope, graph, facts, &found.sites);
        for placed in found.sites.iter().filter(|p| p.scope == *scope) {
            if self.failed.is_err() {
                return;
            }
            self.failed = self.rewrite_site(model, graph, facts, placed, options, store);
            progress(self.done.len(), found.sites.len());
        }
    }

    fn rewrite_site(
        &mut self,
        model: &Model,
        graph: &Graph,
        facts: &Facts,
        placed: &Placed,
        options: RewriteOptions,
        store: &mut Store,
    ) -> Result<(), RewriteError> {
        let site = &placed.site;
        let rank = options.rank.unwrap_or_else(|| site.full_rank());
        let prefix = self.names.prefix(graph.node(site.score).map_or("", label));
        // Branches that fill and read one cache have to agree on its basis.
        let key = format!(
            "{} {} {}",
            placed.cache_key(&self.found.main),
            site.key.scale,
            site.value.scale
        );
        let (weights, errors) = match self.shared.get(&key) {
            Some(known) => known.clone(),
            None => {
                let factors = factor(&moments(model, graph, facts, site), site.kv_heads, rank)
                    .map_err(|cause| RewriteError::Factor {
                        layer: site.layer,
                        cause,
                    })?;
                let (weights, tensors) = weights(&prefix, site, &factors)?;
                let main = self.patches.entry(Scope::default()).or_default();
                for tensor in tensors {
                    main.initializers
                        .push(store(tensor).map_err(RewriteError::Store)?);
                }
                let errors = (factors.key.predicted_error, factors.value.predicted_error);
                self.shared.insert(key, (weights.clone(), errors));
                (weights, errors)
            }
        };
        let kept = placed.origin.as_ref().and_then(|o| o.grouped.as_ref());
        let mut patch = match (options.target, kept) {
            (Target::Gqa, Some(operator)) => grouped(graph, prefix, site, operator, &weights, rank),
            _ => absorbed(graph, prefix, site, &weights, rank),
        };
        for (scope, change) in placed.interface(&self.found.main, &mut patch) {
            let outer = self.patches.entry(scope).or_default();
            outer.merge(change).map_err(RewriteError::Patch)?;
        }
        let own = self.patches.entry(placed.scope.clone()).or_default();
        own.merge(patch).map_err(RewriteError::Patch)?;
        self.done.push(RewrittenSite {
            site: site.clone(),
            rank,
            key_error: errors.0,
            value_error: errors.1,
        });
        Ok(())
    }
}

fn check(
    model: &Model,
    sites: &[Placed],
    rejects: &[Reject],
    options: RewriteOptions,
) -> Result<(), RewriteError> {
    if sites.is_empty() {
        return Err(RewriteError::Nothing(rejects.to_vec()));
    }
    if !rejects.is_empty() && !options.allow_partial {
        return Err(RewriteError::Partial {
            recognised: sites.len(),
            rejects: rejects.to_vec(),
        });
    }
    let opset = model
        .proto
        .opset_import
        .iter()
        .find(|o| matches!(o.domain(), "" | "ai.onnx"))
        .map_or(0, |o| o.version());
    if opset < OLDEST_OPSET {
        return Err(RewriteError::Opset(opset));
    }
    if options.target == Target::Gqa {
        for placed in sites {
            let (site, rank) = (
                &placed.site,
                options.rank.unwrap_or_else(|| placed.site.full_rank()),
            );
            if placed.origin.as_ref().is_none_or(|o| o.grouped.is_none()) {
                return Err(RewriteError::NotGrouped {
                    layer: site.layer,
                    dialect: site.dialect.name(),
                });
            }
            if rank % RANK_STEP != 0 {
                return Err(RewriteError::RankStep {
                    rank,
                    layer: site.layer,
                });
            }
        }
    }
    if let Some(rank) = options.rank {
        for site in sites.iter().map(|p| &p.site) {
            let full = site.full_rank();
            if rank == 0 || rank > full {
                return Err(RewriteError::Rank {
                    rank,
                    layer: site.layer,
                    full,
                });
            }
        }
    }
    Ok(())
}

/// Moments from the projection weights; where a projection is not plainly there, every direction counts alike.
fn moments(model: &Model, graph: &Graph, facts: &Facts, site: &Site) -> Moments {
    let side = |side: &Side| {
        let width = site.kv_heads * side.size;
        match projection(model, graph, facts, &side.new, width) {
            Some(weight) => weights_only::white_input(&weight),
            None => SideMoments::white(width),
        }
    };
    Moments {
        key: side(&site.key),
        value: side(&site.value),
    }
}

fn accept(model: &Model, seams: &Seams) -> Result<(), RewriteError> {
    verify(&model.proto).map_err(RewriteError::Broken)?;
    let main = model.proto.graph.as_ref();
    let broken = main.and_then(|main| seams.broken(model, main));
    broken.map_or(Ok(()), |value| Err(RewriteError::Seam(value)))
}
