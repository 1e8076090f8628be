//! The integer format of a cache, computed from the sampled rows of a calibration text.

use gqa2mla_passes::factor::rounding::Levels;
use gqa2mla_passes::factor::{
    CacheBits, Factors, JointFactors, Made, Moments, Rounding, SideFactors, SideMoments,
    SpectralError, Statistics,
};
use gqa2mla_passes::forms::{CachedKeys, Form};
use gqa2mla_passes::recognize::scoring::Scoring;
use ndarray::{Array2, Axis, concatenate};

/// What the integers of one cache are made of.
pub struct RoundingInputs<'r> {
    /// How the attentions that read the cache score, if that is known.
    pub scoring: Option<&'r Scoring>,
    /// The statistics of the cache.
    pub statistics: &'r Statistics,
    /// The moments from which its factors were computed.
    pub moments: &'r Moments,
}

impl RoundingInputs<'_> {
    /// Factors of one latent of keys and values, which is cached as 8-bit integers; `None` if the sampled keys cannot be
    /// rotated back, because their rotation is not known.
    #[must_use]
    pub fn rounded_together(&self, factors: JointFactors, rotated: bool) -> Option<Made> {
        let sample = &self.statistics.sample;
        let keys = match &self.statistics.position_free {
            Some(sums) => sample.keys_unrotated(&sums.rope),
            None if rotated => return None,
            None => sample.keys(),
        };
        let rows = concatenate![Axis(1), keys, sample.values()];
        let centred = self.scoring.is_some();
        let levels = |side: &SideFactors| Levels::of_eight_bits(&rows.dot(&side.down), centred);
        let rounding = Rounding {
            bits: CacheBits::Eight,
            heads: 1,
            key: levels(&factors.key),
            value: levels(&factors.value),
        };
        let factors = factors.giving_back(&rounding, self.statistics.received.len());
        Some(Made::JointRounded(factors.into(), rounding.into()))
    }

    /// `factors` with latents cached as integers of `bits`, in the way that `form` supports. Scales are valid for a
    /// context of `positions` positions: sampled keys are rotated to random positions of it.
    ///
    /// # Errors
    /// [`SpectralError`] if the moments are not finite.
    pub fn rounded(
        &self,
        factors: Factors,
        bits: CacheBits,
        form: &dyn Form,
        positions: usize,
    ) -> Result<Made, SpectralError> {
        let centres = form.rounds().has_centres();
        let factors = match form.keeps_heads() {
            true if form.rebases_heads() => self.evened(factors, bits, true)?,
            false if bits.are_few() => self.evened(factors, bits, false)?,
            _ => factors,
        };
        let heads = match form.keeps_heads() {
            true => self.statistics.query_square.len(),
            false => 1,
        };
        let sample = &self.statistics.sample;
        let keys = match (&self.statistics.position_free, form.cached_keys()) {
            (Some(sums), CachedKeys::Rotated) => sample.keys_over(&sums.rope, positions),
            (Some(sums), _) => sample.keys_unrotated(&sums.rope),
            (None, _) => sample.keys(),
        };
        // Keys can be centred if a constant shift of the scores cancels in the softmax. Values can be centred if the
        // probabilities sum to one, because the bias correction of the outputs then restores the centre.
        let centred_keys = centres && self.scoring.is_some_and(Scoring::ignores_shifts);
        let centred_values = centres && self.scoring.is_some();
        let of_head = |rows: &Array2<f64>, centred: bool| match bits {
            CacheBits::Four => Levels::of_four_bits(rows, centred),
            CacheBits::Six => {
                Levels::of_two_digits(rows, bits.second_digits(rows.ncols()), centred)
            }
            _ => Levels::of_eight_bits(rows, centred),
        };
        let levels = |rows: &Array2<f64>, centred: bool| {
            let size = (rows.ncols() / heads.max(1)).max(1);
            let each = rows.axis_chunks_iter(Axis(1), size);
            let each: Vec<Levels> = each
                .map(|rows| of_head(&rows.to_owned(), centred))
                .collect();
            Levels::of_heads(&each)
        };
        let rounding = Rounding {
            bits,
            heads,
            key: levels(&keys.dot(&factors.key.down), centred_keys),
            value: levels(&sample.values().dot(&factors.value.down), centred_values),
        };
        let query_heads = self.statistics.received.len();
        let factors = factors.giving_back(&rounding.value, query_heads);
        Ok(Made::Rounded(factors, rounding.into()))
    }

    /// The factors in the bases in which rounding to few levels costs least: one of the latent, or one of each head.
    fn evened(
        &self,
        factors: Factors,
        bits: CacheBits,
        by_head: bool,
    ) -> Result<Factors, SpectralError> {
        let even = |side: &SideFactors, spread: &Array2<f64>, moments: &SideMoments| {
            let weight = moments.weight.as_deref();
            match by_head {
                true => {
                    let size = side.up.len_of(Axis(1));
                    side.evened_by_head(spread, weight, bits.second_digits(size))
                }
                false => side.evened(spread, weight, bits.second_digits(side.down.ncols())),
            }
        };
        let Moments { key, value, .. } = self.moments;
        Ok(Factors {
            key: even(&factors.key, &key.cached, key)?,
            value: even(&factors.value, &self.values(), value)?,
            bias: factors.bias,
        })
    }

    /// The second moments of the values in which rounding is weighed. Every value is rounded with the same error, whatever
    /// attention it receives, so that all tokens have equal weight.
    fn values(&self) -> Array2<f64> {
        &self.statistics.value_square / self.statistics.tokens.max(1.0)
    }
}
