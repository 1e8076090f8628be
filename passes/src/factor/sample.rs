//! A random sample of the rows that a text puts into the cache. Sums give the variance of a channel; its range, which
//! the scales of integers need, is only known from rows.

use std::collections::BTreeMap;

use ndarray::{Array1, Array2, ArrayView2};

use crate::factor::rope::Rope;

/// Number of sampled rows. The largest of 512 normally distributed numbers is about 3 standard deviations.
const ROWS: usize = 512;
/// Number of positions to which each sampled key is rotated to represent all positions of a context.
const DRAWS: usize = 4;
/// The first token of a sequence is 2^4 times as likely to be sampled as any other token. First tokens are attention
/// sinks: they are few, have extreme values, and every query reads them.
const FIRST: u32 = 4;

/// The cached rows of a random sample of the tokens of a text, with a fixed seed: the same text gives the same sample,
/// however it is divided into runs. First tokens are preferred (see `FIRST`).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    rows: BTreeMap<u64, Row>,
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    position: usize,
    key: Vec<f32>,
    value: Vec<f32>,
}

impl Sample {
    /// Adds one sequence that starts at position 0: the cached `keys` [T, G*d] and `values` [T, G*dv]. `before` is the
    /// number of tokens of all earlier sequences.
    pub fn add(&mut self, before: u64, keys: &ArrayView2<f64>, values: &ArrayView2<f64>) {
        let rows = keys.outer_iter().zip(values.outer_iter());
        for (position, (key, value)) in rows.enumerate() {
            let order = order(before + position as u64) >> if position == 0 { FIRST } else { 0 };
            let last = self.rows.last_key_value().map_or(0, |(last, _)| *last);
            if self.rows.len() >= ROWS {
                if order >= last {
                    continue;
                }
                self.rows.pop_last();
            }
            let single = |row: ndarray::ArrayView1<f64>| row.iter().map(|&x| x as f32).collect();
            let row = Row {
                position,
                key: single(key),
                value: single(value),
            };
            self.rows.insert(order, row);
        }
    }

    /// Whether the sample is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The values [n, G*dv].
    #[must_use]
    pub fn values(&self) -> Array2<f64> {
        matrix(self.rows.values().map(|row| row.value.as_slice()))
    }

    /// The keys [n, G*d] as they are cached, each at its own position.
    #[must_use]
    pub fn keys(&self) -> Array2<f64> {
        matrix(self.rows.values().map(|row| row.key.as_slice()))
    }

    /// The keys [n, G*d] before rotation by `rope`.
    #[must_use]
    pub fn keys_unrotated(&self, rope: &Rope) -> Array2<f64> {
        let back = |row: &Row| {
            let (mut key, width) = (row.key.clone(), row.key.len());
            rope.rotate(&mut key, width, &|_| -(row.position as f64));
            key
        };
        let rows: Vec<Vec<f32>> = self.rows.values().map(back).collect();
        matrix(rows.iter().map(Vec::as_slice))
    }

    /// The keys [n, G*d], each rotated to several random positions below `positions`. First tokens keep position 0,
    /// because no sequence has them elsewhere.
    #[must_use]
    pub fn keys_over(&self, rope: &Rope, positions: usize) -> Array2<f64> {
        let mut rows = Vec::with_capacity(self.rows.len() * DRAWS);
        for (&order_of_row, row) in &self.rows {
            for draw in 0..DRAWS {
                let mut key = row.key.clone();
                let room = positions.saturating_sub(row.position).max(1) as u64;
                let offset = match row.position {
                    0 => 0,
                    _ => order(order_of_row ^ draw as u64) % room,
                };
                let width = key.len();
                rope.rotate(&mut key, width, &|_| offset as f64);
                rows.push(key);
            }
        }
        matrix(rows.iter().map(Vec::as_slice))
    }

    /// The sample as an array [n, 2 + G*d + G*dv] for files: random order, position, key and value of each row.
    /// [`Self::from_array`] is the inverse.
    #[must_use]
    pub fn to_array(&self) -> Array2<f64> {
        let rows = self.rows.iter().map(|(&order, row)| {
            let numbers = row.key.iter().chain(&row.value).map(|&x| f64::from(x));
            [order as f64, row.position as f64]
                .into_iter()
                .chain(numbers)
                .collect::<Vec<f64>>()
        });
        let rows: Vec<Vec<f64>> = rows.collect();
        matrix(rows.iter().map(Vec::as_slice))
    }

    /// The sample stored in `array` by [`Self::to_array`]; `key_width` is G*d.
    #[must_use]
    pub fn from_array(array: &ArrayView2<f64>, key_width: usize) -> Self {
        let rows = array.outer_iter().map(|row| {
            let single = |from: usize, to: usize| {
                let numbers = row.iter().take(to).skip(from);
                numbers.map(|&x| x as f32).collect()
            };
            let at = |column: usize| row.get(column).copied().unwrap_or_default();
            let sampled = Row {
                position: at(1) as usize,
                key: single(2, 2 + key_width),
                value: single(2 + key_width, row.len()),
            };
            (at(0) as u64, sampled)
        });
        Self {
            rows: rows.collect(),
        }
    }

    /// Whether every row has G*d = `key_width` and G*dv = `value_width` numbers, all finite.
    #[must_use]
    pub fn is_consistent(&self, key_width: usize, value_width: usize) -> bool {
        let fits = |row: &Row| {
            let mut numbers = row.key.iter().chain(&row.value);
            row.key.len() == key_width
                && row.value.len() == value_width
                && numbers.all(|x| x.is_finite())
        };
        self.rows.values().all(fits)
    }
}

/// The rank of token `number` in a fixed random permutation of all tokens (SplitMix64). It is below 2^52, so that an
/// f64 represents it exactly.
pub(super) fn order(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) >> 12
}

/// The rows, which have equal lengths, as a matrix.
fn matrix<'r, T: Copy + Into<f64> + 'r>(rows: impl Iterator<Item = &'r [T]>) -> Array2<f64> {
    let rows: Vec<&[T]> = rows.collect();
    let width = rows.first().map_or(0, |row| row.len());
    let numbers: Array1<f64> = rows
        .iter()
        .flat_map(|row| row.iter().map(|&x| x.into()))
        .collect();
    let shaped = numbers.into_shape_with_order((rows.len(), width));
    shaped.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(from: usize, count: usize) -> Array2<f64> {
        Array2::from_shape_fn((count, 2), |(t, i)| ((from + t) * 2 + i) as f64)
    }

    #[test]
    fn a_sample_is_the_same_however_its_text_is_cut_into_runs_and_survives_a_file() {
        let mut whole = Sample::default();
        for number in 0..40_u64 {
            let rows = rows(number as usize * 100, 100);
            whole.add(number * 100, &rows.view(), &rows.view());
        }
        assert_eq!(whole.keys().dim(), (ROWS, 2));
        // Of 40 first tokens far more are kept than the eighth of all tokens.
        let first = whole.rows.values().filter(|row| row.position == 0).count();
        assert!(first > 30, "{first}");
        let stored = Sample::from_array(&whole.to_array().view(), 2);
        assert_eq!(stored, whole);
        assert!(stored.is_consistent(2, 2) && !stored.is_consistent(3, 1));
    }

    #[test]
    fn a_slow_pair_reaches_further_over_a_context_than_in_the_text() {
        let mut sample = Sample::default();
        let rows = Array2::from_shape_fn((64, 2), |(_, i)| if i == 0 { 1.0 } else { 0.0 });
        sample.add(0, &rows.view(), &rows.view());
        let Some(rope) = Rope::new(2, vec![(0, 1)], vec![0.001]) else {
            panic!("a rotation of one pair");
        };
        let reach = |keys: Array2<f64>| keys.column(1).iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert!(reach(sample.keys()) == 0.0);
        assert!(reach(sample.keys_over(&rope, 4096)) > 0.9);
    }
}
