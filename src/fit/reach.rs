//! How far statistics of a text carry: to which positions, and to other text.

use serde::Serialize;

use crate::fit::statistics::ModelStatistics;

/// Tokens for each direction of a second moment: with fewer, its smaller eigenvalues are those of the text and not of the
/// model.
pub const FEWEST: f64 = 10.0;
/// With fewer, the eigenvalues are off by some tens of percent; with more, they hardly change.
pub const FEW: f64 = 50.0;

/// How far statistics carry.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reach {
    /// Positions that were read, from 0.
    pub read: usize,
    /// Attentions whose rotation is not recognised: factors of their keys hold for the positions that were read alone.
    pub bound_to_positions: usize,
    /// Tokens for each direction that a second moment has to tell apart, in the attention with the fewest: the wider of
    /// G*d and G*dv. Infinite where there is no attention.
    pub tokens_a_direction: f64,
}

impl Reach {
    /// Whether there are too few tokens for factors that hold on other text.
    #[must_use]
    pub fn is_too_short(&self) -> bool {
        self.tokens_a_direction < FEWEST
    }

    /// Whether more tokens would change the factors.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.tokens_a_direction < FEW
    }

    /// Of `statistics`.
    #[must_use]
    pub fn of(statistics: &ModelStatistics) -> Self {
        let sums = || statistics.layers.values();
        let tokens = sums().map(|sums| {
            let directions = sums.key_sum.len().max(sums.value_square.nrows());
            sums.tokens / directions.max(1) as f64
        });
        Self {
            read: statistics.length,
            bound_to_positions: sums().filter(|sums| sums.position_free.is_none()).count(),
            tokens_a_direction: tokens.fold(f64::INFINITY, f64::min),
        }
    }
}
