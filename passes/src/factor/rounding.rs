//! Cached numbers as 8-bit integers: a scale and a centre for each channel, constant for all tokens.
//!
//! A channel c is cached as n = round((c - centre) / scale), cut off at the ends of int8, and read as n * scale. The scale goes into w_u, so
//! that a product with w_u reads the integers themselves. The centre is never added again: softmax does not see a constant
//! that all keys have (it moves every score of a query alike), and of the values it comes back as a bias of the outputs.

use ndarray::{Array1, Array2, Axis, s};

use crate::factor::Factors;

/// How many bits a cached number takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheBits {
    /// Those of the model's own floating-point type.
    #[default]
    Model,
    /// 8: integers with a constant scale for each channel.
    Eight,
}

impl CacheBits {
    /// The number of bits of integers; `None` for the model's own type.
    #[must_use]
    pub fn number(self) -> Option<u32> {
        match self {
            Self::Model => None,
            Self::Eight => Some(8),
        }
    }
}

/// Largest integer.
const LARGEST: f64 = 127.0;
/// The range of the integers over that of the sampled rows. Rounding normal numbers to 256 levels loses least when they
/// reach to 4 standard deviations, and a sample of some hundred reaches to 3.
const MARGIN: f64 = 1.3;

/// The integers of one side.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    /// What one step is worth, [r]; always above 0.
    pub scale: Array1<f64>,
    /// What is taken off every row before it is rounded, [r]; `None` where a constant may not be taken off.
    pub centre: Option<Array1<f64>>,
}

impl Levels {
    /// The levels of channels that `rows` [n, r] are a sample of; `centred` where a constant may be taken off all rows.
    #[must_use]
    pub fn of(rows: &Array2<f64>, centred: bool) -> Self {
        let ends = |column: ndarray::ArrayView1<f64>| {
            let low = column.fold(f64::INFINITY, |m, &x| m.min(x));
            let high = column.fold(f64::NEG_INFINITY, |m, &x| m.max(x));
            if low <= high { (low, high) } else { (0.0, 0.0) }
        };
        let ends: Vec<(f64, f64)> = rows.axis_iter(Axis(1)).map(ends).collect();
        let reach = |&(low, high): &(f64, f64)| match centred {
            true => (high - low) / 2.0,
            false => high.abs().max(low.abs()),
        };
        let largest = ends.iter().map(reach).fold(0.0, f64::max);
        // A channel that never moves has no step of its own; any will do.
        let least = if largest > 0.0 { largest * 1e-6 } else { 1.0 };
        let scale = ends.iter().map(|e| reach(e).max(least) * MARGIN / LARGEST);
        let middle = || ends.iter().map(|(low, high)| (low + high) / 2.0).collect();
        Self {
            scale: scale.collect(),
            centre: centred.then(middle),
        }
    }
}

/// The integers of both sides.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounding {
    /// Of the keys.
    pub key: Levels,
    /// Of the values.
    pub value: Levels,
}

impl Factors {
    /// The factors with w_uk and w_uv for latents that are read as integers of `rounding`.
    #[must_use]
    pub fn reading_integers(&self, rounding: &Rounding) -> Self {
        let mut scaled = self.clone();
        scaled.key.up *= &rounding.key.scale;
        scaled.value.up *= &rounding.value.scale;
        scaled
    }

    /// The factors with the centre of the values given back as a bias of the outputs, for H `heads` whose probabilities
    /// add up to one.
    #[must_use]
    pub fn giving_back(mut self, levels: &Levels, heads: usize) -> Self {
        let Some(centre) = &levels.centre else {
            return self;
        };
        let (kv_heads, size, _) = self.value.up.dim();
        let group = (heads / kv_heads.max(1)).max(1);
        let mut bias = self
            .bias
            .take()
            .unwrap_or_else(|| Array2::zeros((heads, size)));
        for (head, mut row) in bias.outer_iter_mut().enumerate() {
            let own = (head / group).min(kv_heads.saturating_sub(1));
            row += &self.value.up.slice(s![own, .., ..]).dot(centre);
        }
        self.bias = Some(bias);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that are nearly normal: sums of 12 that are evenly distributed.
    fn normal(count: usize) -> Array2<f64> {
        let mut state = 1_u64;
        let mut even = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        Array2::from_shape_fn((count, 1), |_| (0..12).map(|_| even()).sum::<f64>() - 6.0)
    }

    fn error(rows: &Array2<f64>, scale: f64) -> f64 {
        let lost = |&x: &f64| x - (x / scale).round().clamp(-LARGEST, LARGEST) * scale;
        rows.iter().map(|x| lost(x).powi(2)).sum::<f64>() / rows.len() as f64
    }

    #[test]
    fn levels_of_few_rows_lose_little_more_than_the_best_levels_of_all() {
        let all = normal(100_000);
        let few = all.slice(s![..512, ..]).to_owned();
        let scale = Levels::of(&few, false).scale[0];
        let tried = (20..80).map(|reach| error(&all, f64::from(reach) * 0.1 / LARGEST));
        let best = tried.fold(f64::INFINITY, f64::min);
        assert!(
            error(&all, scale) < 1.3 * best,
            "{} {best}",
            error(&all, scale)
        );
    }

    #[test]
    fn a_constant_takes_no_levels_where_it_may_be_taken_off() {
        let rows = Array2::from_shape_fn((64, 2), |(t, i)| 100.0 + (t * (i + 1)) as f64 / 64.0);
        let centred = Levels::of(&rows, true);
        let as_is = Levels::of(&rows, false);
        assert!(as_is.scale[0] > 100.0 * centred.scale[0]);
        assert!(centred.centre.is_some_and(|c| (c[1] - 100.98).abs() < 0.01));
        assert_eq!(as_is.centre, None);
        let still = Levels::of(&Array2::zeros((8, 1)), true);
        assert!(still.scale[0] > 0.0);
    }
}
