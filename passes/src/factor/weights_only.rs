//! Moments from the weights alone: the layer's input is taken to be white.

use ndarray::Array2;

use super::moments::SideMoments;

/// The moments of `x W` for a white `x` [E]: Wᵀ W, for a projection `weight` [E, G*d].
///
/// Positions are not accounted for: where keys are rotated after the projection this is a basis, not an estimate.
pub fn white_input(weight: &Array2<f64>) -> SideMoments {
    SideMoments {
        cached: weight.t().dot(weight),
        weight: None,
        measured: false,
    }
}
