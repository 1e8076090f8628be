//! How a model is to be rewritten, and whether it can be.

use std::collections::{BTreeMap, BTreeSet};

use crate::analysis::placed::Placed;
use crate::factor::Ranks;
use crate::forms::OLDEST_OPSET;
use crate::forms::grouped::RANK_STEP;
use crate::onnx::stored::Model;
use crate::operators::Target;
use crate::pipeline::error::RewriteError;
use crate::recognize::reject::Reject;
use crate::recognize::site::Site;

/// How a model is rewritten.
#[derive(Debug, Clone, Default)]
pub struct RewriteOptions {
    /// Latent widths.
    pub ranks: RankPlan,
    /// Rewrite what is recognised even where some attentions are not.
    pub allow_partial: bool,
    /// What the rewritten attentions run as.
    pub target: Target,
    /// Where the up-projections are.
    pub form: LatentForm,
    /// Positions over which factors from weights alone average rotated keys; `None` is 4096.
    pub context: Option<usize>,
    /// Rewrite these attentions alone, as [`crate::analysis::observe::ObservedLayer::id`] names them; `None` rewrites all.
    pub only: Option<BTreeSet<String>>,
}

/// Positions that are averaged over where nobody says how long contexts are.
pub const CONTEXT: usize = 4096;

/// Where the up-projections are, and so what is cached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LatentForm {
    /// With the queries and the outputs; keys are cached after rotation. Decoding reads the latent cache alone.
    #[default]
    Absorbed,
    /// In front of the products; keys are cached before rotation and rebuilt at every step. The most accurate at a given
    /// rank, the slowest to decode, and the one to fine-tune.
    Expanded,
    /// One rotated head of d numbers, and one latent of the unrotated keys and the values: TransMLA's layout, for
    /// comparison. Never exact.
    Decoupled,
}

/// How wide the latents are.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum RankPlan {
    /// As wide as the cached heads: nothing is lost.
    #[default]
    Full,
    /// One width for the keys and the values of every layer.
    Uniform(usize),
    /// The width that makes each layer's cache this share of what it was, rounded down, the same for keys and values.
    Ratio(f64),
    /// Widths by attention, as [`crate::analysis::observe::ObservedLayer::id`] names them; the full rank for those not listed.
    Each(BTreeMap<String, Ranks>),
}

impl RewriteOptions {
    /// The widths of one attention: of what stands for its keys and for its values.
    pub fn ranks_of(&self, id: &str, site: &Site) -> Ranks {
        if self.form != LatentForm::Decoupled {
            return self.ranks.of(id, site, self.target);
        }
        // As many numbers as the other forms would cache; d of them are rotated.
        let all = match &self.ranks {
            RankPlan::Ratio(ratio) => (ratio * site.cached_numbers() as f64 + 1e-9) as usize,
            other => {
                let ranks = other.of(id, site, self.target);
                ranks.key + ranks.value
            }
        };
        Ranks {
            key: site.key.size,
            value: all.saturating_sub(site.key.size),
        }
    }
}

impl RankPlan {
    /// The widths of one attention.
    fn of(&self, id: &str, site: &Site, target: Target) -> Ranks {
        match self {
            Self::Full => Ranks::uniform(site.full_rank()),
            Self::Uniform(rank) => Ranks::uniform(*rank),
            Self::Ratio(ratio) => {
                // A hair above, so that a ratio that was computed from a rank gives that rank.
                let exact = ratio * site.cached_numbers() as f64 / 2.0 + 1e-9;
                let step = match target {
                    Target::MatMul => 1,
                    Target::Gqa => RANK_STEP,
                };
                let rank = exact as usize / step * step;
                Ranks::uniform(rank.clamp(step, site.full_rank().max(step)))
            }
            Self::Each(ranks) => ranks
                .get(id)
                .copied()
                .unwrap_or_else(|| Ranks::uniform(site.full_rank())),
        }
    }
}

/// Refuses what cannot be rewritten as asked; `ids` names the sites.
pub fn check(
    model: &Model,
    sites: &[Placed],
    ids: &[String],
    rejects: &[Reject],
    options: &RewriteOptions,
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
    if let RankPlan::Ratio(ratio) = options.ranks
        && !(ratio > 0.0 && ratio <= 1.0)
    {
        return Err(RewriteError::Ratio(ratio));
    }
    for (placed, id) in sites.iter().zip(ids) {
        let site = &placed.site;
        let ranks = options.ranks_of(id, site);
        in_range(site, ranks, options.form)?;
        if options.target == Target::Gqa {
            fits_the_operator(placed, ranks)?;
        }
    }
    Ok(())
}

fn in_range(site: &Site, ranks: Ranks, form: LatentForm) -> Result<(), RewriteError> {
    let full = match form {
        LatentForm::Decoupled => site.cached_numbers(),
        LatentForm::Absorbed | LatentForm::Expanded => site.full_rank(),
    };
    for rank in [ranks.key, ranks.value] {
        if rank == 0 || rank > full {
            return Err(RewriteError::Rank {
                rank,
                layer: site.layer,
                full,
            });
        }
    }
    Ok(())
}

/// Whether `GroupQueryAttention` can hold the latent of this attention.
fn fits_the_operator(placed: &Placed, ranks: Ranks) -> Result<(), RewriteError> {
    let site = &placed.site;
    if placed.origin.as_ref().is_none_or(|o| o.grouped.is_none()) {
        return Err(RewriteError::NotGrouped {
            layer: site.layer,
            dialect: site.dialect.name(),
        });
    }
    if ranks.key != ranks.value {
        return Err(RewriteError::RanksDiffer {
            layer: site.layer,
            key: ranks.key,
            value: ranks.value,
        });
    }
    if !ranks.key.is_multiple_of(RANK_STEP) {
        return Err(RewriteError::RankStep {
            rank: ranks.key,
            layer: site.layer,
        });
    }
    Ok(())
}
