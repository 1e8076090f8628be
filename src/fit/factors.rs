//! The factorizations of a model's layers.

use gqa2mla_passes::factor::joint::{JointFactors, joint};
use gqa2mla_passes::factor::statistics::Recipe;
use gqa2mla_passes::factor::transmla::{DecoupledFactors, Joint, transmla};
use gqa2mla_passes::factor::{Factors, Moments, Ranks, SpectralError, Statistics, factor};
use gqa2mla_passes::forms::CachedKeys;
use gqa2mla_passes::recognize::rotation::Rotated;
use gqa2mla_passes::recognize::scoring::Scoring;
use gqa2mla_passes::recognize::site::Site;
use ndarray::Array2;

/// A method of factorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Factorization {
    /// From the projection weights only.
    #[default]
    Weights,
    /// From statistics, without weights of errors.
    Plain,
    /// From statistics, with errors weighted by queries and o_proj.
    Weighted,
    /// As `Weighted`, with centred keys, and values weighted by attention probability with bias correction.
    Calibrated,
    /// TransMLA, in its own cache layout; for comparison.
    TransMla {
        /// Number of neighbouring frequencies that are treated as one (FreqFold).
        fold: usize,
    },
}

impl Factorization {
    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Plain => "plain",
            Self::Weighted => "weighted",
            Self::Calibrated => "calibrated",
            Self::TransMla { .. } => "transmla",
        }
    }

    /// The recipe for the moments of an attention with this scoring. Keys are centred only if a constant shift cancels
    /// in the softmax, and values only if the probabilities sum to one, so that a bias can restore the mean.
    fn recipe(self, scoring: Option<&Scoring>, keys: CachedKeys, positions: usize) -> Recipe {
        let calibrated = self == Self::Calibrated;
        Recipe {
            weighted: matches!(self, Self::Weighted | Self::Calibrated),
            centred_keys: calibrated && scoring.is_some_and(Scoring::ignores_shifts),
            // The moments of keys and values together give every token the same weight.
            received_values: calibrated && scoring.is_some() && keys != CachedKeys::WithValues,
            unrotated: keys.are_unrotated(),
            positions,
        }
    }
}

/// The moments of the cache of attentions that score as `scoring` says, for a form that caches `keys`, averaged over the
/// positions 0 to `positions` - 1. `value_weight` weighs errors of the values, as [`gqa2mla_passes::analysis::SiteView`] has it.
#[must_use]
pub fn moments(
    scoring: Option<&Scoring>,
    value_weight: Option<Vec<Array2<f64>>>,
    statistics: &Statistics,
    factorization: Factorization,
    keys: CachedKeys,
    positions: usize,
) -> Moments {
    statistics.moments(factorization.recipe(scoring, keys, positions), value_weight)
}

/// TransMLA's factors of one attention; `None` if its statistics lack unrotated keys.
///
/// # Errors
/// [`SpectralError`] if the moments are not finite.
pub fn decoupled(
    site: &Site,
    rotated: &Rotated,
    statistics: &Statistics,
    ranks: Ranks,
    fold: usize,
) -> Result<Option<DecoupledFactors>, SpectralError> {
    let (Rotated::By(rotation), Some(key), Some(cross)) = (
        rotated,
        &statistics.unrotated_square,
        &statistics.unrotated_value,
    ) else {
        return Ok(None);
    };
    let tokens = statistics.tokens.max(1.0);
    let joint = Joint {
        key: &(key / tokens),
        value: &(&statistics.value_square / tokens),
        cross: &(cross / tokens),
        kv_heads: site.kv_heads,
        interleaved: rotation.interleaved,
    };
    transmla(&joint, fold, ranks.value).map(Some)
}

/// Factors of one latent of keys and values, whose errors are weighted as `moments` has it; `None` if the statistics lack the
/// keys before rotation. If `centred`, a bias restores the means; valid if the probabilities of each query sum to one.
///
/// # Errors
/// [`SpectralError`] if the moments are not finite.
pub fn joint_of(
    site: &Site,
    (moments, centred): (&Moments, bool),
    statistics: &Statistics,
    ranks: Ranks,
) -> Result<Option<JointFactors>, SpectralError> {
    let heads = (statistics.received.len(), site.kv_heads);
    let moments = statistics.joint(moments, centred);
    moments
        .map(|moments| joint(&moments, heads, ranks))
        .transpose()
}

/// Factors of one attention from its moments.
///
/// # Errors
/// [`SpectralError`] if the moments are not finite.
pub fn from_moments(
    site: &Site,
    moments: &Moments,
    ranks: Ranks,
) -> Result<Factors, SpectralError> {
    factor(moments, site.kv_heads, ranks)
}
