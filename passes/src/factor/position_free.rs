//! Sums over keys and queries before rotation, from which moments can be computed for any range of positions.
//!
//! The rotated key of a token at position n is R_n k. A calibration text of T tokens covers only positions below T, in
//! which channel pairs with low RoPE frequencies hardly rotate; factors from these moments would lose the directions
//! into which such pairs rotate later. The unrotated key k does not depend on the position, so its moments, averaged
//! over the rotations of all positions of the target context, are valid for all of them.

use ndarray::{Array1, Array2, Axis};

use crate::factor::rope::Rope;

/// Sums of one attention before rotation, in f64; n = G*d.
#[derive(Debug, Clone, PartialEq)]
pub struct PositionFree {
    /// The rotation that has been undone.
    pub rope: Rope,
    /// Sum of k, `[n]`.
    pub key_sum: Array1<f64>,
    /// Sum of k kᵀ, [n, n].
    pub key_square: Array2<f64>,
    /// Sum of q qᵀ over the heads of each group, one [d, d] per KV head.
    pub query_square: Vec<Array2<f64>>,
}

/// The same sums, averaged over the rotations of a range of positions.
#[derive(Debug, Clone, PartialEq)]
pub struct AtPositions {
    /// Sum of rotated k, `[n]`.
    pub key_sum: Array1<f64>,
    /// Sum of rotated k kᵀ, [n, n].
    pub key_square: Array2<f64>,
    /// Sum of rotated q qᵀ, one [d, d] per KV head.
    pub query_square: Vec<Array2<f64>>,
}

impl PositionFree {
    /// Empty sums for `kv_heads` (G) KV heads that are rotated by `rope`.
    #[must_use]
    pub fn new(rope: Rope, kv_heads: usize) -> Self {
        let (d, n) = (rope.size(), kv_heads * rope.size());
        Self {
            rope,
            key_sum: Array1::zeros(n),
            key_square: Array2::zeros((n, n)),
            query_square: vec![Array2::zeros((d, d)); kv_heads],
        }
    }

    /// Adds one sequence that starts at position 0: rotated `keys` [T, n], and rotated `queries` [T, d] of each head.
    pub fn add<'q>(&mut self, keys: &[f32], queries: impl ExactSizeIterator<Item = &'q [f32]>) {
        let (d, n) = (self.rope.size(), self.key_sum.len());
        let rope = self.rope.clone();
        let undone = |rows: &[f32], width: usize| {
            let mut rows = rows.to_vec();
            rope.rotate(&mut rows, width, &|row| -(row as f64));
            Array2::from_shape_fn((rows.len() / width.max(1), width), |(i, j)| {
                rows.get(i * width + j).copied().map_or(0.0, f64::from)
            })
        };
        let keys = undone(keys, n);
        self.key_sum += &keys.sum_axis(Axis(0));
        self.key_square += &keys.t().dot(&keys);
        let group = (queries.len() / self.query_square.len().max(1)).max(1);
        for (head, queries) in queries.enumerate() {
            let queries = undone(queries, d);
            if let Some(sum) = self.query_square.get_mut(head / group) {
                *sum += &queries.t().dot(&queries);
            }
        }
    }

    /// The sums with keys and queries rotated, averaged over the positions 0 to `positions` - 1.
    #[must_use]
    pub fn over(&self, positions: usize) -> AtPositions {
        let rotated = |square| self.rope.mean_square(square, positions);
        AtPositions {
            key_sum: self.rope.mean(&self.key_sum, positions),
            key_square: rotated(&self.key_square),
            query_square: self.query_square.iter().map(rotated).collect(),
        }
    }

    /// Whether the shapes are consistent.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        let (d, n) = (self.rope.size(), self.key_sum.len());
        n == d * self.query_square.len()
            && self.key_square.dim() == (n, n)
            && self.query_square.iter().all(|q| q.dim() == (d, d))
    }

    /// Whether all sums are finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let squares = std::iter::once(&self.key_square).chain(&self.query_square);
        let mut numbers = squares.flatten().chain(&self.key_sum);
        numbers.all(|x| x.is_finite())
    }
}
