//! Summary of the times of several rounds, and of the ratios of two models in the same rounds.

use serde::Serialize;

/// The median, minimum and maximum of several numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median: the middle number, or the mean of the two middle ones.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
}

impl Spread {
    /// The summary of `values`; `None` if it is empty.
    ///
    /// ```
    /// let spread = gqa2mla::bench::spread::Spread::of(&[3.0, 1.0, 4.0]).unwrap();
    /// assert_eq!((spread.median, spread.min, spread.max), (3.0, 1.0, 4.0));
    /// ```
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(Self {
            median: f64::midpoint(lower, upper),
            min,
            max,
        })
    }

    /// The summary of the ratios `values[i] / base[i]` of runs in the same round.
    #[must_use]
    pub fn of_ratios(values: &[f64], base: &[f64]) -> Option<Self> {
        let ratios = values.iter().zip(base).map(|(value, base)| value / base);
        Self::of(&ratios.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn the_median_is_the_middle_of_the_sorted_numbers() {
        let of = |values: &[f64]| Spread::of(values).map(|s| (s.median, s.min, s.max));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[2.0]), Some((2.0, 2.0, 2.0)));
        assert_eq!(of(&[9.0, 1.0, 5.0]), Some((5.0, 1.0, 9.0)));
        assert_eq!(of(&[10.0, 1.0, 2.0, 4.0]), Some((3.0, 1.0, 10.0)));
    }

    /// The second round met a busy machine: the medians of the times would say 3, and every round says 2.
    #[test]
    fn ratios_are_of_runs_of_the_same_round() {
        let (first, second) = ([1.0, 10.0, 1.5], [2.0, 20.0, 3.0]);
        let ratios = Spread::of_ratios(&second, &first).unwrap();
        assert_eq!((ratios.median, ratios.min, ratios.max), (2.0, 2.0, 2.0));
    }
}
