//! The integers that the rows of a calibration text give a cache.

use gqa2mla_passes::factor::rounding::Levels;
use gqa2mla_passes::factor::{Factors, Made, Rounding, Statistics};
use gqa2mla_passes::forms::Rounds;
use gqa2mla_passes::recognize::scoring::Scoring;
use gqa2mla_passes::recognize::site::Site;

/// `factors` with latents that are cached as integers, as a form `rounds` them, for contexts of `positions` positions: a row
/// of the text stands for the same token at any of them.
#[must_use]
pub fn rounded(
    site: &Site,
    scoring: Option<&Scoring>,
    statistics: &Statistics,
    factors: Factors,
    rounds: Rounds,
    positions: usize,
) -> Made {
    let sample = &statistics.sample;
    let keys = match &statistics.position_free {
        Some(sums) => sample.keys_over(&sums.rope, positions),
        None => sample.keys(),
    };
    let centres = rounds == Rounds::AboutCentre;
    // A constant may be taken off the keys where softmax does not see it, and is given back to the outputs where
    // probabilities add up to one.
    let centred_keys = centres && scoring.is_some_and(Scoring::ignores_shifts);
    let centred_values = centres && scoring.is_some();
    let value = Levels::of(&sample.values().dot(&factors.value.down), centred_values);
    let rounding = Rounding {
        key: Levels::of(&keys.dot(&factors.key.down), centred_keys),
        value,
    };
    let factors = factors.giving_back(&rounding.value, site.heads);
    Made::Rounded(factors, rounding)
}
