//! What a factorization is made from: second moments of what one layer caches, and of what reads it.

use ndarray::Array2;

/// The moments of one side of one layer, in f64.
#[derive(Debug, Clone)]
pub struct SideMoments {
    /// E[x xᵀ] of the cached rows, [G*d, G*d].
    pub cached: Array2<f64>,
    /// How much the reader minds an error, one [d, d] a KV head: E[q qᵀ] summed over the heads of the group for keys,
    /// the sum of W_O,h W_O,hᵀ for values. `None` weighs all directions alike.
    pub weight: Option<Vec<Array2<f64>>>,
}

impl SideMoments {
    /// Knows nothing: every direction alike.
    pub fn white(size: usize) -> Self {
        Self {
            cached: Array2::eye(size),
            weight: None,
        }
    }
}

/// The moments of one layer.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Keys, [G*d].
    pub key: SideMoments,
    /// Values, [G*dv].
    pub value: SideMoments,
}
