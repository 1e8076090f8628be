//! How wide the latents are.

use std::collections::BTreeMap;

use crate::analysis::identity::SiteId;
use crate::factor::Ranks;
use crate::recognize::site::Site;

/// The latent widths of all attentions of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum RankPlan {
    /// As wide as the cached heads: nothing is lost.
    #[default]
    Full,
    /// One width for the keys and the values of every layer.
    Uniform(usize),
    /// The width that makes each layer's cache this share of what it was, rounded down, the same for keys and values.
    Ratio(f64),
    /// Widths by attention; the full rank for those that are not listed.
    Each(BTreeMap<SiteId, Ranks>),
}

impl RankPlan {
    /// The widths of `site`, which `id` names, in multiples of `step`.
    pub fn ranks(&self, id: &SiteId, site: &Site, step: usize) -> Ranks {
        match self {
            Self::Full => Ranks::uniform(site.full_rank()),
            Self::Uniform(rank) => Ranks::uniform(*rank),
            Self::Ratio(ratio) => {
                // A hair above, so that a ratio that was computed from a rank gives that rank.
                let exact = ratio * site.cached_numbers() as f64 / 2.0 + 1e-9;
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
