//! The largest loss that the caller accepts for a smaller cache.

use serde::Serialize;

use crate::measure::quality::Quality;

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

    /// Which quantities of a model of this quality exceed the limit.
    #[must_use]
    pub fn broken_by(self, quality: &Quality) -> BrokenBy {
        // NaN, from a failed measurement, exceeds every limit.
        let within = |loss: f64| loss <= self.limit();
        match self {
            Self::PerplexityIncrease(_) => BrokenBy {
                perplexity: !within(quality.worst_increase()),
                kl: !within(quality.increase_by_kl()),
            },
            Self::Kl(_) => BrokenBy {
                perplexity: false,
                kl: !within(quality.worst_kl()),
            },
        }
    }

    /// Whether a model of this quality keeps the promise.
    #[must_use]
    pub fn is_kept(self, quality: &Quality) -> bool {
        self.loss(quality) <= self.limit()
    }
}

/// The quantities that exceed the limit of a promise. A promise on perplexity also limits the KL (see
/// [`Quality::promised_increase`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BrokenBy {
    /// The increase of perplexity exceeds the limit.
    pub perplexity: bool,
    /// The KL exceeds the limit, or the increase of perplexity that corresponds to it does.
    pub kl: bool,
}

impl BrokenBy {
    /// Whether no quantity exceeds the limit.
    #[must_use]
    pub fn nothing(self) -> bool {
        !self.perplexity && !self.kl
    }
}
