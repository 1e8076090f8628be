//! What a factorization is made from: second moments of what one layer caches, and of what reads it.

use ndarray::{Array2, s};

/// The moments of one side of one layer, in f64.
#[derive(Debug, Clone)]
pub struct SideMoments {
    /// E[x xᵀ] of the cached rows, [G*d, G*d]; about a mean where a constant error does no harm or is given back.
    pub cached: Array2<f64>,
    /// How much the reader minds an error, one [d, d] a KV head: E[q qᵀ] summed over the heads of the group for keys,
    /// the sum of W_O,h W_O,hᵀ for values. `None` weighs all directions alike.
    pub weight: Option<Vec<Array2<f64>>>,
    /// Whether `cached` was measured. Latent channels are then brought to unit second moment; an estimate that leaves
    /// out biases and norms would blow up channels that are not small at all.
    pub measured: bool,
}

impl SideMoments {
    /// Knows nothing: every direction alike.
    pub fn white(size: usize) -> Self {
        Self {
            cached: Array2::eye(size),
            weight: None,
            measured: false,
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
    /// What each head's output is on average, in terms of all cached values, [H, G*dv]. The part of it that the latent
    /// cannot hold is given back as a bias; `None` gives nothing back.
    pub mean_output: Option<Array2<f64>>,
}

/// L_j = sum over the heads h of group j of W_O,h W_O,hᵀ, [dv, dv] a KV head, for W_O [H*dv, E]: how much an error in the
/// outputs of the group's heads matters to what follows.
pub fn value_readers(w_o: &Array2<f64>, heads: usize, kv_heads: usize) -> Vec<Array2<f64>> {
    let size = w_o.nrows() / heads.max(1);
    let group = (heads / kv_heads.max(1)).max(1);
    let of_group = |j: usize| {
        let mut sum = Array2::zeros((size, size));
        for head in j * group..(j + 1) * group {
            let rows = w_o.slice(s![head * size..(head + 1) * size, ..]);
            sum += &rows.dot(&rows.t());
        }
        sum
    };
    (0..kv_heads).map(of_group).collect()
}
