//! Latent ranks.

use std::collections::BTreeMap;

use crate::analysis::identity::SiteId;
use crate::factor::Ranks;
use crate::recognize::site::Site;

/// The ranks of all attentions of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum RankPlan {
    /// The lossless rank of each side, at which the rewrite is exact.
    #[default]
    Full,
    /// One rank for the keys and the values of every layer.
    Uniform(usize),
    /// The rank, rounded down and equal for keys and values, that reduces each layer's cache to this share of its size.
    Ratio(f64),
    /// Ranks by attention; the full rank for attentions that are not listed.
    Each(BTreeMap<SiteId, Ranks>),
}

impl RankPlan {
    /// The ranks of `site`, whose id is `id`, as multiples of `step`. No rank is above the lossless ones, `full`, except a
    /// uniform rank above the number of cached channels, which the caller refuses.
    pub fn ranks(&self, id: &SiteId, site: &Site, full: Ranks, step: usize) -> Ranks {
        match self {
            Self::Full => full,
            Self::Uniform(rank) if *rank > site.full_rank() => Ranks::uniform(*rank),
            Self::Uniform(rank) => Ranks {
                key: full.key.min(*rank),
                value: full.value.min(*rank),
            },
            Self::Ratio(ratio) => {
                // A small surplus, so that a ratio computed from a rank yields this rank despite rounding.
                let all = ratio * site.cached_numbers() as f64 + 2e-9;
                let stepped = |numbers: f64| (numbers.max(0.0) as usize / step * step).max(step);
                let half = all / 2.0;
                // If keys or values are narrower than half, the other ones get the rest.
                let key = full.key.min(stepped(half.max(all - full.value as f64)));
                let value = full.value.min(stepped(half.max(all - full.key as f64)));
                Ranks { key, value }
            }
            Self::Each(ranks) => ranks.get(id).copied().unwrap_or(full),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{RankPlan, Ranks};
    use crate::analysis::identity::SiteId;
    use crate::graph::NodeId;
    use crate::recognize::site::{Dialect, Side, Site};

    /// G = 2 KV heads of d = 24 and dv = 16.
    fn unequal() -> Site {
        let side = |size| Side {
            new: String::new(),
            source: String::new(),
            cache: None,
            scale: 1.0,
            size,
            rank: 2 * size,
            fewer: None,
            product_type: 1,
            path: Vec::new(),
            shape_readers: Vec::new(),
        };
        Site {
            layer: 0,
            within: None,
            name: String::new(),
            dialect: Dialect::MATMUL,
            heads: 4,
            kv_heads: 2,
            elem_type: 1,
            cached_type: 1,
            query: String::new(),
            score: NodeId(0),
            output: NodeId(1),
            probabilities: String::new(),
            key: side(24),
            value: side(16),
            shares: None,
        }
    }

    fn ranks(plan: &RankPlan) -> (usize, usize) {
        let full = Ranks { key: 48, value: 32 };
        let Ranks { key, value } = plan.ranks(&SiteId::new("present.0.key"), &unequal(), full, 1);
        (key, value)
    }

    #[test]
    fn exact_latents_are_as_wide_as_each_side_and_no_wider() {
        assert_eq!(ranks(&RankPlan::Full), (48, 32));
        assert_eq!(ranks(&RankPlan::Ratio(1.0)), (48, 32));
        assert_eq!(ranks(&RankPlan::Uniform(40)), (40, 32));
    }

    #[test]
    fn a_share_of_the_cache_is_that_share_of_its_numbers() {
        assert_eq!(ranks(&RankPlan::Ratio(0.5)), (20, 20));
        assert_eq!(ranks(&RankPlan::Ratio(0.9)), (40, 32));
    }

    #[test]
    fn a_rank_above_both_sides_stays_as_it_was_asked_for() {
        assert_eq!(ranks(&RankPlan::Uniform(49)), (49, 49));
    }
}
