//! The factorization callback of a rewrite.

use std::error::Error;

use crate::analysis::SiteView;
use crate::factor::{CacheBits, Made, Ranks, factor};

/// The requirements of the factors of one attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The ranks.
    pub ranks: Ranks,
    /// Bits of a cached number. Those of integers need statistics.
    pub bits: CacheBits,
    /// Positions over which the moments of rotated keys are averaged where no text tells them.
    pub context: usize,
}

/// Computes the factors of one attention.
pub type Factorize<'f> =
    dyn FnMut(&SiteView, Wanted) -> Result<Made, Box<dyn Error + Send + Sync>> + 'f;

/// Integers were asked for, and nothing tells their scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the scales of a cache of integers come from statistics of a text, and there are none")]
pub struct NoStatistics;

/// Factors from the weights alone: weighted principal components of the projections.
///
/// # Errors
/// [`crate::factor::SpectralError`] where the weights are not finite; [`NoStatistics`] where integers are wanted.
pub fn by_weights(view: &SiteView, wanted: Wanted) -> Result<Made, Box<dyn Error + Send + Sync>> {
    if wanted.bits != CacheBits::Model {
        return Err(NoStatistics.into());
    }
    let moments = view.weight_moments(wanted.ranks, wanted.context);
    let factors = factor(&moments, view.site().kv_heads, wanted.ranks)?;
    Ok(Made::Latent(factors))
}
