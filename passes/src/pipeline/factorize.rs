//! Where the factors of a rewrite come from.

use std::error::Error;

use crate::analysis::SiteView;
use crate::factor::{Made, Ranks, factor};

/// The factors that are wanted of one attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The latent widths.
    pub ranks: Ranks,
    /// Positions over which the moments of rotated keys are averaged where no text tells them.
    pub context: usize,
}

/// Makes the factors of one attention.
pub type Factorize<'f> =
    dyn FnMut(&SiteView, Wanted) -> Result<Made, Box<dyn Error + Send + Sync>> + 'f;

/// Factors from the weights alone: weighted principal components of the projections.
///
/// # Errors
/// [`crate::factor::SpectralError`] where the weights are not finite.
pub fn by_weights(view: &SiteView, wanted: Wanted) -> Result<Made, Box<dyn Error + Send + Sync>> {
    let moments = view.weight_moments(wanted.ranks, wanted.context);
    let factors = factor(&moments, view.site().kv_heads, wanted.ranks)?;
    Ok(Made::Latent(factors))
}
