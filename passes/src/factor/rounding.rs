//! Integers of 8, 6 or 4 bits for cached numbers, with a scale and a centre for each channel that are the same for all
//! tokens.
//!
//! A channel c is cached as n = round((c - centre) / scale), clamped to the range of the type, and is read as n *
//! scale. The scales are multiplied into w_u, so that a product with w_u reads the integers directly. The centres are
//! not added back to the keys, because a constant in all keys shifts all scores of a query equally and cancels in the
//! softmax. The centres of the values are restored by a bias of the outputs.
//!
//! 6 bits are a mean over the channels: the first half of the channels, where errors cost most, has two digits of 4
//! bits, and the other half one. The second digit is the rounding error of the first, in steps of 1/16. Both digits are
//! channels of the cache and are multiplied by the same row of the weight that reads them.

use ndarray::{Array1, Array2, Axis, s};

use crate::factor::Factors;

/// The number of bits of a cached number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheBits {
    /// The model's own floating-point type.
    #[default]
    Model,
    /// 8-bit integers with a constant scale for each channel.
    Eight,
    /// 6 bits on average: two digits of 4 bits for the first half of the channels, one digit for the others.
    Six,
    /// 4-bit integers with a constant scale for each channel, two in each byte.
    Four,
}

impl CacheBits {
    /// The number of bits of integers; `None` for the model's own type.
    #[must_use]
    pub fn number(self) -> Option<u32> {
        match self {
            Self::Model => None,
            Self::Eight => Some(8),
            Self::Six => Some(6),
            Self::Four => Some(4),
        }
    }

    /// Whether they are so few that the basis matters in which numbers are rounded: 6 or 4.
    #[must_use]
    pub fn are_few(self) -> bool {
        matches!(self, Self::Six | Self::Four)
    }

    /// Bits of one digit (a number has one or two digits); `None` for the model's own type.
    #[must_use]
    pub fn digit(self) -> Option<u32> {
        match self {
            Self::Model => None,
            Self::Eight => Some(8),
            Self::Six | Self::Four => Some(4),
        }
    }

    /// How many of `rank` channels, counted from the first, have a second digit.
    #[must_use]
    pub fn second_digits(self, rank: usize) -> usize {
        match self {
            Self::Model | Self::Eight | Self::Four => 0,
            Self::Six => rank / 2 / WHOLE * WHOLE,
        }
    }

    /// Number of cached channels for a latent of rank `rank`, second digits included.
    #[must_use]
    pub fn channels(self, rank: usize) -> usize {
        rank + self.second_digits(rank)
    }

    /// Number of elements of one cached row for a latent of rank `rank`; one element holds two 4-bit digits.
    #[must_use]
    pub fn elements(self, rank: usize) -> usize {
        match self {
            Self::Model | Self::Eight => rank,
            Self::Six | Self::Four => self.channels(rank) / 2,
        }
    }
}

/// The number of second digits is a multiple of this, because head sizes of `GroupQueryAttention` must be multiples of
/// 8.
const WHOLE: usize = 8;
/// Largest 8-bit integer in use; -128 is not used, so that the range is symmetric.
const LARGEST: f64 = 127.0;
/// The range of 8-bit integers divided by the range of the sampled rows. For normally distributed numbers and 256
/// levels the best range is about 4 standard deviations; a sample of some hundred rows reaches about 3.
const MARGIN: f64 = 1.3;
/// Number of 4-bit integers, -8 to 7.
const SIXTEEN: f64 = 16.0;
/// Number of ranges that are tried for 4 bits, up to the range of the sampled rows. Clamping the largest values loses
/// least with 16 levels: for normally distributed numbers the best range is 2.7 standard deviations.
const RANGES: usize = 32;

/// The quantization levels of the keys or the values.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    /// The scale of each channel [r], followed by the scales of the second digits; always positive. Of heads with levels of
    /// their own, one head after the other.
    pub scale: Array1<f64>,
    /// The centre [r] that is subtracted from every row before rounding; `None` if a constant cannot be corrected
    /// later.
    pub centre: Option<Array1<f64>>,
    /// How many channels, counted from the first (of each head), have a second digit.
    pub second_digits: usize,
}

impl Levels {
    /// The levels of several heads with as many channels each, one head after the other.
    #[must_use]
    pub fn of_heads(heads: &[Self]) -> Self {
        let after = |a: &[&Array1<f64>]| a.iter().flat_map(|part| part.iter().copied()).collect();
        let scales: Vec<&Array1<f64>> = heads.iter().map(|head| &head.scale).collect();
        let centres: Option<Vec<_>> = heads.iter().map(|head| head.centre.as_ref()).collect();
        Self {
            scale: after(&scales),
            centre: centres.map(|centres| after(&centres)),
            second_digits: heads.first().map_or(0, |head| head.second_digits),
        }
    }

    /// The 4-bit levels of channels, chosen from the tried ranges by the least squared error on the sample `rows` [n,
    /// r]. If `centred`, they are symmetric about the mean, which is halfway between two levels.
    #[must_use]
    pub fn of_four_bits(rows: &Array2<f64>, centred: bool) -> Self {
        let half = if centred { 0.5 } else { 0.0 };
        let channel = |column: ndarray::ArrayView1<f64>| {
            let mean = match centred {
                true => column.mean().unwrap_or_default(),
                false => 0.0,
            };
            let reach = column.fold(0.0f64, |m, &x| m.max((x - mean).abs()));
            let lost = |scale: f64| -> f64 {
                let level = |x: f64| (x / scale - half).round().clamp(-8.0, 7.0) + half;
                let off = column
                    .iter()
                    .map(|x| x - mean)
                    .map(|x| level(x) * scale - x);
                off.map(|x| x * x).sum()
            };
            let tried = (1..=RANGES).map(|n| 2.0 * reach * n as f64 / RANGES as f64 / SIXTEEN);
            let tried = tried.filter(|&scale| scale > 0.0).map(|s| (lost(s), s));
            let best = tried.fold((f64::INFINITY, 0.0), |a, b| if b.0 < a.0 { b } else { a });
            (best.1, mean)
        };
        let mut channels: Vec<(f64, f64)> = rows.axis_iter(Axis(1)).map(channel).collect();
        let largest = channels.iter().fold(0.0, |m: f64, c| m.max(c.0));
        let least = least_step(largest);
        for (scale, mean) in &mut channels {
            *scale = scale.max(least);
            *mean += half * *scale;
        }
        Self {
            scale: channels.iter().map(|c| c.0).collect(),
            centre: centred.then(|| channels.iter().map(|c| c.1).collect()),
            second_digits: 0,
        }
    }

    /// The 6-bit levels of channels with the sample `rows` [n, r]: the first `two` channels have two digits of 4 bits,
    /// the others one.
    #[must_use]
    pub fn of_two_digits(rows: &Array2<f64>, two: usize, centred: bool) -> Self {
        let (fine, coarse) = rows.view().split_at(Axis(1), two.min(rows.ncols()));
        let mut fine = Self::of_eight_bits(&fine.to_owned(), centred);
        let coarse = Self::of_four_bits(&coarse.to_owned(), centred);
        let second = fine.scale.clone();
        fine.scale *= SIXTEEN;
        let behind = |a: &Array1<f64>, b: &Array1<f64>| a.iter().chain(b).copied().collect();
        let first: Array1<f64> = behind(&fine.scale, &coarse.scale);
        let centre = fine.centre.as_ref().zip(coarse.centre.as_ref());
        Self {
            scale: behind(&first, &second),
            centre: centre.map(|(a, b)| behind(a, b)),
            second_digits: second.len(),
        }
    }

    /// The 8-bit levels of channels with the sample `rows` [n, r]. If `centred`, they are symmetric about the middle of
    /// each channel's range, otherwise about zero.
    #[must_use]
    pub fn of_eight_bits(rows: &Array2<f64>, centred: bool) -> Self {
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
        let least = least_step(largest);
        let scale = ends.iter().map(|e| reach(e).max(least) * MARGIN / LARGEST);
        let middle = || ends.iter().map(|(low, high)| (low + high) / 2.0).collect();
        Self {
            scale: scale.collect(),
            centre: centred.then(middle),
            second_digits: 0,
        }
    }
}

/// The scale of a channel that is constant in the sample, if the largest range of a channel is `largest`: any positive
/// number would do.
fn least_step(largest: f64) -> f64 {
    if largest > 0.0 { largest * 1e-6 } else { 1.0 }
}

/// The integer format of the keys and the values.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounding {
    /// Bits of a cached number.
    pub bits: CacheBits,
    /// Number of heads that are cached: G, or 1 for a latent.
    pub heads: usize,
    /// The levels of the keys.
    pub key: Levels,
    /// The levels of the values.
    pub value: Levels,
}

impl Factors {
    /// The factors with additional columns of w_uk and w_uv for the second digits of `rounding`: copies of the columns
    /// of their channels, behind all channels of the latent or of each head.
    #[must_use]
    pub fn reading_second_digits(&self, rounding: &Rounding) -> Self {
        let mut wider = self.clone();
        let sides = [
            (&mut wider.key.up, &rounding.key),
            (&mut wider.value.up, &rounding.value),
        ];
        for (up, levels) in sides {
            let size = up.len_of(Axis(2)) / rounding.heads.max(1);
            let of_head = |head: usize| {
                let channels = (0..size).chain(0..levels.second_digits);
                channels.map(move |channel| head * size + channel)
            };
            let columns: Vec<usize> = (0..rounding.heads).flat_map(of_head).collect();
            *up = up.select(Axis(2), &columns);
        }
        wider
    }

    /// The factors with the scales of `rounding` multiplied into w_uk and w_uv, for latents that are read as integers.
    #[must_use]
    pub fn reading_integers(&self, rounding: &Rounding) -> Self {
        let mut scaled = self.clone();
        scaled.key.up *= &rounding.key.scale;
        scaled.value.up *= &rounding.value.scale;
        scaled
    }

    /// The factors with the centre of the values added to the bias correction of the outputs, for H = `heads` query
    /// heads. Exact if the probabilities of each query sum to one.
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
        let scale = Levels::of_eight_bits(&few, false).scale[0];
        let tried = (20..80).map(|reach| error(&all, f64::from(reach) * 0.1 / LARGEST));
        let best = tried.fold(f64::INFINITY, f64::min);
        assert!(
            error(&all, scale) < 1.3 * best,
            "{} {best}",
            error(&all, scale)
        );
    }

    #[test]
    fn sixteen_levels_of_few_rows_lose_little_more_than_the_best_of_normal_numbers() {
        let (few, all) = (normal(2048), normal(100_000));
        let levels = Levels::of_four_bits(&few, true);
        let (scale, centre) = (levels.scale[0], levels.centre.unwrap()[0]);
        let lost = |&x: &f64| {
            let n = ((x - centre) / scale).round().clamp(-8.0, 7.0);
            n * scale + centre - x
        };
        let lost = all.iter().map(|x| lost(x).powi(2)).sum::<f64>() / all.len() as f64;
        // The best sixteen even levels of a normal distribution lose 0.01154 of its variance (Max, 1960).
        assert!((0.0105..0.0130).contains(&lost), "{lost}");
        assert_eq!(Levels::of_four_bits(&few, false).centre, None);
    }

    #[test]
    fn a_second_digit_leaves_what_eight_bits_leave() {
        let rows = normal(2048);
        let rows = ndarray::concatenate![Axis(1), rows, rows];
        let levels = Levels::of_two_digits(&rows, 1, true);
        let centre = levels.centre.unwrap();
        let digit = |x: f64, scale: f64| (x / scale).round().clamp(-8.0, 7.0) * scale;
        let lost = |channel: usize, second: Option<f64>| {
            let squares = rows.column(channel).mapv(|x| {
                let mut left = x - centre[channel];
                left -= digit(left, levels.scale[channel]);
                second
                    .map_or(left, |scale| left - digit(left, scale))
                    .powi(2)
            });
            squares.sum() / squares.len() as f64
        };
        let (one, two) = (lost(1, None), lost(0, Some(levels.scale[2])));
        assert!((0.01..0.013).contains(&one) && two < 2e-4, "{one} {two}");
        assert_eq!(levels.scale.len(), 3);
        let bits = CacheBits::Six;
        assert_eq!((bits.channels(192), bits.elements(192)), (288, 144));
        // Widths stay multiples of 8.
        assert_eq!((bits.channels(24), bits.elements(24)), (32, 16));
    }

    #[test]
    fn a_constant_takes_no_levels_where_it_may_be_taken_off() {
        let rows = Array2::from_shape_fn((64, 2), |(t, i)| 100.0 + (t * (i + 1)) as f64 / 64.0);
        let centred = Levels::of_eight_bits(&rows, true);
        let as_is = Levels::of_eight_bits(&rows, false);
        assert!(as_is.scale[0] > 100.0 * centred.scale[0]);
        assert!(centred.centre.is_some_and(|c| (c[1] - 100.98).abs() < 0.01));
        assert_eq!(as_is.centre, None);
        let still = Levels::of_eight_bits(&Array2::zeros((8, 1)), true);
        assert!(still.scale[0] > 0.0);
    }
}
