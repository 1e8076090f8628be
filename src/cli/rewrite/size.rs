//! The options of the cache size: four alternatives.

use clap::Args;
use gqa2mla_passes::RankPlan;

use crate::cli::values::{increase, nats, share};
use crate::compress::search::Promise;

/// Nothing is lost without any of these.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct Size {
    /// Latent width of keys and of values; the default is the full rank.
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Share of the cache that is kept, such as 50% or 0.5.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    cache_ratio: Option<f64>,
    /// Find the smallest cache, of any bits and any rank, whose perplexity on held-out text is at most this much higher, such as 2% or 0.02.
    #[arg(long, value_name = "SHARE", value_parser = increase)]
    max_perplexity_increase: Option<f64>,
    /// Find the smallest cache, of any bits and any rank, whose mean KL from the original on held-out text is at most this, in nats.
    #[arg(long, value_name = "NATS", value_parser = nats)]
    max_kl: Option<f64>,
}

impl Size {
    /// The requested ranks.
    pub fn plan(&self) -> RankPlan {
        match (self.rank, self.cache_ratio) {
            (Some(rank), _) => RankPlan::Uniform(rank),
            (None, Some(ratio)) => RankPlan::Ratio(ratio),
            (None, None) => RankPlan::Full,
        }
    }

    /// The requested promise.
    pub fn promise(&self) -> Option<Promise> {
        let perplexity = self
            .max_perplexity_increase
            .map(Promise::PerplexityIncrease);
        perplexity.or(self.max_kl.map(Promise::Kl))
    }
}
