//! What a smaller cache may lose at most, as a caller promises it, and what breaks that promise.

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

    /// What breaks the promise in a model of this quality, if anything does.
    #[must_use]
    pub fn broken_by(self, quality: &Quality) -> BrokenBy {
        // A failed measurement, which is no number, keeps nothing.
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

/// What breaks a promise: the increase of perplexity, or the KL, from which a promise on perplexity also computes one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BrokenBy {
    /// The perplexity rises by more.
    pub perplexity: bool,
    /// The KL is larger, or stands for a larger increase of perplexity.
    pub kl: bool,
}

impl BrokenBy {
    /// Whether nothing does.
    #[must_use]
    pub fn nothing(self) -> bool {
        !self.perplexity && !self.kl
    }
}
