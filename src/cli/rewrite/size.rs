//! The options of the cache size: four alternatives.

use clap::Args;
use gqa2mla_passes::RankPlan;

use crate::cli::values::{increase, nats, share};
use crate::compress::promise::Promise;

/// The options of the cache size; without them the rewrite is exact.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct Size {
    /// Latent rank of keys and of values; the default is exact.
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Cache size as a share of the original size, such as 50% or 0.5.
    #[arg(long, value_name = "SHARE", value_parser = share, allow_hyphen_values = true)]
    cache_ratio: Option<f64>,
    /// Search for a small cache with at most this increase of perplexity, such as 2%.
    ///
    /// The perplexity on held-out text is at most this much higher than that of the original, such as 2% or 0.02. The
    /// search takes the fewest bits at which the full rank keeps this promise, and then the smallest rank.
    #[arg(long, value_name = "X", value_parser = increase, allow_hyphen_values = true)]
    max_perplexity_increase: Option<f64>,
    /// Search for a small cache with at most this mean KL from the original, in nats.
    ///
    /// The mean KL from the original's next-token distribution on held-out text is at most this. The search is that of
    /// --max-perplexity-increase.
    #[arg(long, value_name = "NATS", value_parser = nats, allow_hyphen_values = true)]
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
