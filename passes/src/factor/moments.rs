//! The input of a factorization: second moments of the cached rows of one layer, and the weights of errors in them.

use ndarray::{Array2, s};

/// The moments of the keys or the values of one layer, in f64.
#[derive(Debug, Clone)]
pub struct SideMoments {
    /// E[x xᵀ] of the cached rows, [G*d, G*d]; centred if a constant error cancels or is corrected by a bias.
    pub cached: Array2<f64>,
    /// Weight of an error, one [d, d] per KV head: for keys, E[q qᵀ] summed over the query heads of the group; for
    /// values, the sum of W_O,h W_O,hᵀ. `None`: the identity.
    pub weight: Option<Vec<Array2<f64>>>,
    /// Whether `cached` was measured on a text. Latent channels are then scaled to unit second moment. With an estimate
    /// from weights, which leaves out biases and norms, this scaling could amplify channels that are not small.
    pub measured: bool,
}

impl SideMoments {
    /// Identity moments: all directions have the same weight.
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
    /// Keys, `[G*d]`.
    pub key: SideMoments,
    /// Values, `[G*dv]`.
    pub value: SideMoments,
    /// Mean output of each head as a mean of all cached values, [H, G*dv]. The part that the latent loses becomes the
    /// bias correction; `None`: no bias correction.
    pub mean_output: Option<Array2<f64>>,
}

/// The weights of errors in the values: L_j = sum over the heads h of group j of W_O,h W_O,hᵀ, one [dv, dv] per KV
/// head, for W_O [H*dv, E].
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
