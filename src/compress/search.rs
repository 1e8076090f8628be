//! Search for the smallest rank that keeps a promise, by measurements.

use gqa2mla_passes::{RankPlan, RewriteOptions};

use crate::compress::bisect::{Found, smallest};
use crate::compress::compressor::Compressor;
use crate::compress::error::CompressError;
use crate::compress::events::Observer;
use crate::measure::quality::Quality;
use crate::measure::text::Text;

/// Resolution of the search: number of candidate ranks up to the full rank.
const SEARCHED: usize = 48;

/// The largest loss of a rewritten model on held-out text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Promise {
    /// Increase of perplexity relative to the original's.
    PerplexityIncrease(f64),
    /// Mean KL divergence from the original, in nats.
    Kl(f64),
}

impl Promise {
    /// The limit of the loss.
    #[must_use]
    pub fn limit(self) -> f64 {
        match self {
            Self::PerplexityIncrease(limit) | Self::Kl(limit) => limit,
        }
    }

    /// The name of the limited quantity.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PerplexityIncrease(_) => "perplexity increase",
            Self::Kl(_) => "KL",
        }
    }

    /// The loss of a model of this quality, to be compared with the limit: the largest over all ranges of positions
    /// with enough tokens. For a promise on perplexity, also the increase that corresponds to the KL.
    #[must_use]
    pub fn loss(self, quality: &Quality) -> f64 {
        match self {
            Self::PerplexityIncrease(_) => quality.promised_increase(),
            Self::Kl(_) => quality.worst_kl(),
        }
    }

    /// Whether a model of this quality keeps the promise.
    #[must_use]
    pub fn is_kept(self, quality: &Quality) -> bool {
        self.loss(quality) <= self.limit()
    }
}

/// The result of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// The promise.
    pub promise: Promise,
    /// The measured ranks, and the smallest one that keeps the promise.
    pub found: Found,
}

impl Search {
    /// The smallest rank that keeps the promise, or else the full rank, which is exact.
    #[must_use]
    pub fn plan(&self) -> RankPlan {
        self.found.best.map_or(RankPlan::Full, RankPlan::Uniform)
    }
}

/// Finds the smallest rank that keeps `promise` on `held_out`: first without reconstruction, which is fast and gives an
/// upper bound, then with reconstruction below this rank.
///
/// # Errors
/// [`CompressError`].
pub fn search(
    compressor: &Compressor,
    options: &RewriteOptions,
    promise: Promise,
    held_out: &Text,
    observer: &mut Observer,
) -> Result<Search, CompressError> {
    let planned = compressor.check(options)?;
    let ranks = planned.iter().map(|p| p.site.full_rank());
    let full = ranks.min().unwrap_or(1);
    let step = match options.form.rank_step() {
        1 => (full / SEARCHED).max(1),
        step => step,
    };
    let mut loss = |by: &Compressor, rank: usize| {
        let options = RewriteOptions {
            ranks: RankPlan::Uniform(rank),
            ..options.clone()
        };
        let (_, quality) = by.measure(&options, held_out, observer)?;
        Ok::<_, CompressError>(promise.loss(&quality))
    };
    let limit = promise.limit();
    let quick = compressor.without_reconstruction();
    let mut found = smallest((step, full), step, limit, &mut |rank| loss(&quick, rank))?;
    if compressor.reconstruction.is_none() {
        return Ok(Search { promise, found });
    }
    // Reconstruction has at most halved the loss of all models measured so far; 3 leaves a margin.
    let hopeless = found.curve.iter().filter(|p| p.loss > 3.0 * limit);
    let lowest = hopeless.map(|p| p.rank + step).max().unwrap_or(step);
    let highest = found.best.unwrap_or(full);
    let better = smallest((lowest, highest), step, limit, &mut |rank| {
        loss(compressor, rank)
    })?;
    found.best = better.best;
    found.curve = better.curve;
    Ok(Search { promise, found })
}
