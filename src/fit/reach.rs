//! The coverage of calibration statistics: positions and number of tokens.

use serde::Serialize;

use crate::fit::statistics::ModelStatistics;

/// Smallest number of tokens per dimension of a second moment. With fewer, its smaller eigenvalues depend on the text
/// rather than on the model.
pub const FEWEST: f64 = 10.0;
/// Tokens per dimension below which eigenvalues are off by tens of percent; above they hardly change.
pub const FEW: f64 = 50.0;

/// The coverage of statistics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reach {
    /// Number of positions of the calibration sequences.
    pub read: usize,
    /// Number of attentions whose RoPE is not recognised: the factors of their keys are valid only for these positions.
    pub bound_to_positions: usize,
    /// Tokens per dimension, which is the larger of G*d and G*dv: the minimum over all attentions. Infinite if there is
    /// no attention.
    pub tokens_a_direction: f64,
}

impl Reach {
    /// Whether there are too few tokens for factors that generalize to other text.
    #[must_use]
    pub fn is_too_short(&self) -> bool {
        self.tokens_a_direction < FEWEST
    }

    /// Whether more tokens would change the factors noticeably.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.tokens_a_direction < FEW
    }

    /// The coverage of `statistics`.
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
