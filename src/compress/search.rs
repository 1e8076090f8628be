//! The smallest cache that keeps a promise, found by measuring.

use gqa2mla_passes::{RankPlan, RewriteOptions};

use crate::compress::bisect::{Found, smallest};
use crate::compress::compressor::Compressor;
use crate::compress::error::CompressError;
use crate::compress::events::Observer;
use crate::measure::quality::Quality;
use crate::measure::text::Text;

/// Ranks that a search tells apart: this many between nothing and the full rank.
const SEARCHED: usize = 48;

/// The most that a rewritten model may lose on held-out text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Promise {
    /// Increase of perplexity, as a share of the original's.
    PerplexityIncrease(f64),
    /// Mean KL from the original, in nats.
    Kl(f64),
}

impl Promise {
    /// The largest loss that keeps it.
    #[must_use]
    pub fn limit(self) -> f64 {
        match self {
            Self::PerplexityIncrease(limit) | Self::Kl(limit) => limit,
        }
    }

    /// What it limits.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PerplexityIncrease(_) => "perplexity increase",
            Self::Kl(_) => "KL",
        }
    }

    /// The loss of a model of this quality, to be compared with the limit: the largest at any range of positions that holds
    /// enough tokens to tell, and of a promise on perplexity also that which the KL stands for.
    #[must_use]
    pub fn loss(self, quality: &Quality) -> f64 {
        match self {
            Self::PerplexityIncrease(_) => quality.promised_increase(),
            Self::Kl(_) => quality.worst_kl(),
        }
    }

    /// Whether a model of this quality keeps it.
    #[must_use]
    pub fn is_kept(self, quality: &Quality) -> bool {
        self.loss(quality) <= self.limit()
    }
}

/// What was promised, and what was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// The promise.
    pub promise: Promise,
    /// The ranks that were measured, and the smallest that keeps it.
    pub found: Found,
}

impl Search {
    /// The widths that keep the promise; the full rank, which loses nothing, where no smaller one does.
    #[must_use]
    pub fn plan(&self) -> RankPlan {
        self.found.best.map_or(RankPlan::Full, RankPlan::Uniform)
    }
}

/// Measures ranks on `held_out` until the smallest that keeps `promise` is found: first without reconstruction, which is
/// quick and gives a rank that is too large, then with it below that rank.
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
    // Reconstruction takes off up to half of what is lost, never more in any model measured so far.
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
