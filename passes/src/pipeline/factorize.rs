//! The factorization callback of a rewrite.

use std::error::Error;

use crate::analysis::SiteView;
use crate::factor::{Made, Ranks, factor};

/// The requirements of the factors of one attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The ranks.
    pub ranks: Ranks,
    /// Number of positions over which moments of rotated keys are averaged if they are computed from weights.
    pub context: usize,
}

/// Computes the factors of one attention.
pub type Factorize<'f> =
    dyn FnMut(&SiteView, Wanted) -> Result<Made, Box<dyn Error + Send + Sync>> + 'f;

/// Factors from the weights only: weighted principal components of the projections.
///
/// # Errors
/// [`crate::factor::SpectralError`] if the weights are not finite.
pub fn by_weights(view: &SiteView, wanted: Wanted) -> Result<Made, Box<dyn Error + Send + Sync>> {
    let moments = view.weight_moments(wanted.ranks, wanted.context);
    let factors = factor(&moments, view.site().kv_heads, wanted.ranks)?;
    Ok(Made::Latent(factors))
}
