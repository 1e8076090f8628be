//! How small the cache is to be: four ways to say it.

use clap::Args;
use gqa2mla::compress::search::Promise;
use gqa2mla_passes::RankPlan;

/// Nothing is lost without any of these.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct Size {
    /// Latent width of keys and of values; the default is the full rank.
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Share of the cache that is kept, above 0 and at most 1.
    #[arg(long, value_name = "SHARE")]
    cache_ratio: Option<f64>,
    /// Find the smallest cache whose perplexity on held-out text is at most this much higher, such as 2% or 0.02.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    max_perplexity_increase: Option<f64>,
    /// Find the smallest cache whose mean KL from the original on held-out text is at most this, in nats.
    #[arg(long, value_name = "NATS", value_parser = share)]
    max_kl: Option<f64>,
}

impl Size {
    /// The widths, where they are given.
    pub fn plan(&self) -> RankPlan {
        match (self.rank, self.cache_ratio) {
            (Some(rank), _) => RankPlan::Uniform(rank),
            (None, Some(ratio)) => RankPlan::Ratio(ratio),
            (None, None) => RankPlan::Full,
        }
    }

    /// The promise, where one is given.
    pub fn promise(&self) -> Option<Promise> {
        let perplexity = self
            .max_perplexity_increase
            .map(Promise::PerplexityIncrease);
        perplexity.or(self.max_kl.map(Promise::Kl))
    }
}

/// `2%` or `0.02`, not negative.
fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.strip_suffix('%') {
        Some(percent) => (percent, 0.01),
        None => (text, 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value * unit),
        _ => Err("expected a number such as 0.02 or 2%, not negative".to_owned()),
    }
}
