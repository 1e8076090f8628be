//! The factorization callback of a rewrite.

use std::error::Error;

use crate::analysis::SiteView;
use crate::factor::{CacheBits, Made, Ranks, factor};

/// The requirements of the factors of one attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The ranks.
    pub ranks: Ranks,
    /// Bits of a cached number. Integers need statistics of a text.
    pub bits: CacheBits,
    /// Number of positions over which moments of rotated keys are averaged if there are no statistics of a text.
    pub context: usize,
}

/// Computes the factors of one attention.
pub type Factorize<'f> =
    dyn FnMut(&SiteView, Wanted) -> Result<Made, Box<dyn Error + Send + Sync>> + 'f;

/// The error of factors for an integer cache without statistics, from which the scales are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the scales of a cache of integers come from statistics of a text, and there are none")]
pub struct NoStatistics;

/// Factors from the weights alone: weighted principal components of the projections.
///
/// # Errors
/// [`crate::factor::SpectralError`] if a weight is not finite; [`NoStatistics`] if integers are requested.
pub fn by_weights(view: &SiteView, wanted: Wanted) -> Result<Made, Box<dyn Error + Send + Sync>> {
    if wanted.bits != CacheBits::Model {
        return Err(NoStatistics.into());
    }
    let moments = view.weight_moments(wanted.ranks, wanted.context);
    let factors = factor(&moments, view.site().kv_heads, wanted.ranks)?;
    Ok(Made::Latent(factors))
}
