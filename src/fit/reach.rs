//! The coverage of calibration statistics: positions and number of tokens.

use gqa2mla_passes::Analysis;
use gqa2mla_passes::numbers::counted;
use serde::Serialize;

use crate::fit::statistics::ModelStatistics;
use crate::measure::text::Text;

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

/// Statistics, existing or to be made of a text, with too few tokens for factors that fit other text.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "{what} {tokens_a_direction:.1} tokens for each direction of the cache, and at least {FEWEST} are needed: {way_out}",
    what = .limit.subject(), way_out = .limit.way_out()
)]
pub struct FewTokens {
    /// Tokens per dimension of the cached rows.
    pub tokens_a_direction: f64,
    /// What determines the number of tokens.
    pub limit: TokenLimit,
}

/// What determines the number of tokens of statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenLimit {
    /// The statistics exist already.
    Statistics,
    /// The length of the text, of which at least this many tokens are needed for fitting.
    Text(usize),
    /// The requested number of tokens, which has to be at least this.
    Request(usize),
}

impl TokenLimit {
    fn subject(self) -> &'static str {
        match self {
            Self::Statistics => "the statistics hold",
            Self::Text(_) => "the part of the text that factors are fitted to has",
            Self::Request(_) => "the tokens that factors are fitted to are",
        }
    }

    fn way_out(self) -> String {
        match self {
            Self::Statistics => "make them of more text".to_owned(),
            Self::Text(needed) => {
                format!(
                    "give more text, with at least {} for fitting",
                    counted(needed, "token")
                )
            }
            Self::Request(needed) => {
                format!("fit factors to at least {}", counted(needed, "token"))
            }
        }
    }
}

/// Checks, before any token is read by the model, whether the statistics of `text` would have enough tokens for every
/// attention of `analysis`. `asked` is the requested number of tokens, in sequences of `length`.
///
/// # Errors
/// [`FewTokens`] with the number that is enough.
pub fn check_text(
    text: &Text,
    (asked, length): (usize, usize),
    analysis: &Analysis,
) -> Result<(), FewTokens> {
    let sites = analysis.sites.iter().map(|placed| &placed.site);
    let directions = sites
        .map(|s| s.kv_heads * s.key.size.max(s.value.size))
        .max();
    let directions = directions.unwrap_or(1).max(1);
    let tokens_a_direction = text.ids.len() as f64 / directions as f64;
    if tokens_a_direction >= FEWEST {
        return Ok(());
    }
    let needed = (FEWEST * directions as f64).ceil() as usize;
    // Only whole sequences are read.
    let limit = match text.ids.len() + text.length > asked {
        true => TokenLimit::Request(needed.next_multiple_of(length.max(1))),
        false => TokenLimit::Text(needed),
    };
    Err(FewTokens {
        tokens_a_direction,
        limit,
    })
}

impl Reach {
    /// Refuses existing statistics with so few tokens that factors would overfit them.
    ///
    /// # Errors
    /// [`FewTokens`].
    pub fn check(&self) -> Result<(), FewTokens> {
        match self.is_too_short() {
            true => Err(FewTokens {
                tokens_a_direction: self.tokens_a_direction,
                limit: TokenLimit::Statistics,
            }),
            false => Ok(()),
        }
    }

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
