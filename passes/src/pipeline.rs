//! The passes in their order.

use std::collections::HashSet;
use std::error::Error;

use crate::cleanup::{Live, cleanup};
use crate::factor::{Factors, Moments, SideMoments, SpectralError, factor, weights_only};
use crate::facts::Facts;
use crate::graph::Graph;
use crate::graph::patch::{Patch, PatchError, apply};
use crate::graph::verify::{VerifyError, verify};
use crate::lower::{Lowered, lower};
use crate::model::Model;
use crate::onnx::GraphProto;
use crate::recognize::projection::projection;
use crate::recognize::reject::Reject;
use crate::recognize::site::{Side, Site};
use crate::recognize::{Recognized, recognize};
use crate::rewrite::absorbed::absorbed;
use crate::rewrite::{Names, Store, TensorRange};

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
    let proto = model.proto.graph.as_ref().ok_or(VerifyError::NoGraph)?;
    Ok(understand(model, proto, &HashSet::new()).1)
}

/// The graph with its attention operators spelled out, and what it holds. Operators in `except` stay as they are.
fn understand(
    model: &Model,
    proto: &GraphProto,
    except: &HashSet<String>,
) -> (Lowered, Recognized) {
    let graph = Graph::new(proto);
    let facts = Facts::infer(model, &graph, None);
    let lowered = lower(proto, &graph, &facts, except);
    let graph = Graph::new(&lowered.graph);
    let facts = Facts::infer(model, &graph, None);
    let mut found = recognize(&graph, &facts, &lowered.refused);
    for site in &mut found.sites {
        let score = graph.node(site.score).and_then(|n| n.output.first());
        if let Some(origin) = score.and_then(|s| lowered.origins.get(s)) {
            site.dialect = origin.dialect;
        }
    }
    (lowered, found)
}

/// Operators that were spelled out without becoming a site: in a partial rewrite they stay operators.
fn not_taken(lowered: &Lowered, found: &Recognized) -> HashSet<String> {
    let graph = Graph::new(&lowered.graph);
    let taken: HashSet<&str> = found
        .sites
        .iter()
        .filter_map(|s| Some(graph.node(s.score)?.output.first()?.as_str()))
        .collect();
    let left = lowered
        .origins
        .iter()
        .filter(|(score, _)| !taken.contains(score.as_str()));
    left.map(|(_, origin)| origin.label.clone()).collect()
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
    let proto = model
        .proto
        .graph
        .as_ref()
        .ok_or(RewriteError::Malformed(VerifyError::NoGraph))?;
    // Operators become primitives, and symbolic shapes prove what the primitives do.
    let (mut lowered, mut found) = understand(model, proto, &HashSet::new());
    let rejects = found.rejects.clone();
    check(model, &found.sites, &rejects, options)?;
    let left = not_taken(&lowered, &found);
    if !left.is_empty() {
        (lowered, found) = understand(model, proto, &left);
    }
    let proto = &lowered.graph;
    let graph = Graph::new(proto);
    let facts = Facts::infer(model, &graph, None);
    let sites = found.sites;
    // Factors and new nodes, one layer at a time.
    let mut names = Names::of(proto);
    let mut patch = Patch::default();
    let mut done = Vec::new();
    let total = sites.len();
    for site in sites {
        let rank = options.rank.unwrap_or_else(|| site.full_rank());
        let moments = moments(model, &graph, &facts, &site);
        let factors =
            factor(&moments, site.kv_heads, rank).map_err(|cause| RewriteError::Factor {
                layer: site.layer,
                cause,
            })?;
        let mut one = absorbed(&graph, &mut names, &site, &factors)?;
        for tensor in &mut one.initializers {
            *tensor = store(std::mem::take(tensor)).map_err(RewriteError::Store)?;
        }
        patch.merge(one).map_err(RewriteError::Patch)?;
        done.push(rewritten(site, rank, &factors));
        progress(done.len(), total);
    }
    let seams = seams(&graph, &facts, &done);
    let before = Live::of(proto);
    // From here on the graph changes: apply, sweep, and look at the result as critically as at the input.
    let mut changed = proto.clone();
    apply(patch, &mut changed).map_err(RewriteError::Patch)?;
    cleanup(&mut changed, &before);
    let original = model.proto.graph.replace(changed);
    if let Err(error) = accept(model, &seams) {
        model.proto.graph = original;
        return Err(error);
    }
    Ok(Rewritten {
        sites: done,
        rejects,
    })
}

fn rewritten(site: Site, rank: usize, factors: &Factors) -> RewrittenSite {
    RewrittenSite {
        site,
        rank,
        key_error: factors.key.predicted_error,
        value_error: factors.value.predicted_error,
    }
}

fn check(
    model: &Model,
    sites: &[Site],
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
    if let Some(rank) = options.rank {
        for site in sites {
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

/// A value that keeps its name through the rewrite, and what is known of it.
struct Seam {
    value: String,
    elem_type: Option<i32>,
    shape: Option<Vec<Option<i64>>>,
}

fn seam(facts: &Facts, value: &str) -> Seam {
    Seam {
        value: value.to_owned(),
        elem_type: facts.elem_type(value),
        shape: facts
            .shape(value)
            .map(|s| s.iter().map(|d| d.as_i64()).collect()),
    }
}

fn seams(graph: &Graph, facts: &Facts, sites: &[RewrittenSite]) -> Vec<Seam> {
    sites
        .iter()
        .flat_map(|s| [s.site.score, s.site.output])
        .filter_map(|id| graph.node(id)?.output.first())
        .map(|value| seam(facts, value))
        .collect()
}

fn accept(model: &Model, seams: &[Seam]) -> Result<(), RewriteError> {
    verify(&model.proto).map_err(RewriteError::Broken)?;
    let Some(proto) = model.proto.graph.as_ref() else {
        return Err(RewriteError::Broken(VerifyError::NoGraph));
    };
    same_seams(model, proto, seams)
}

fn same_seams(model: &Model, proto: &GraphProto, seams: &[Seam]) -> Result<(), RewriteError> {
    let graph = Graph::new(proto);
    let facts = Facts::infer(model, &graph, None);
    for old in seams {
        let new = seam(&facts, &old.value);
        let fits = match (&old.shape, &new.shape) {
            (Some(old), Some(new)) => {
                old.len() == new.len()
                    && old
                        .iter()
                        .zip(new)
                        .all(|(a, b)| a.is_none() || b.is_none() || a == b)
            }
            _ => false,
        };
        if !fits || old.elem_type != new.elem_type {
            return Err(RewriteError::Seam(old.value.clone()));
        }
    }
    Ok(())
}
