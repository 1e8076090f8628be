//! Moments from weights only, under the assumption that the normalized layer input is white (identity covariance).

use ndarray::{Array2, s};

use crate::factor::moments::SideMoments;
use crate::factor::rope::Rope;

/// The moments of `x W` for a white `x` (`[E]`): Wᵀ W, for a projection `weight` [E, G*d].
pub fn white_input(weight: &Array2<f64>) -> SideMoments {
    SideMoments {
        cached: weight.t().dot(weight),
        weight: None,
        measured: false,
    }
}

/// The weights of errors in the keys, from W_Q [E, H*d]: second moments of the rotated queries of each group, averaged
/// over the positions 0 to `context` - 1; one [d, d] per KV head.
pub fn readers_of_keys(
    weight: &Array2<f64>,
    heads: usize,
    kv_heads: usize,
    rope: Option<&Rope>,
    context: usize,
) -> Vec<Array2<f64>> {
    let size = weight.ncols() / heads.max(1);
    let group = (heads / kv_heads.max(1)).max(1);
    let of_head = |head: usize| {
        let columns = weight.slice(s![.., head * size..(head + 1) * size]);
        let moment = columns.t().dot(&columns);
        rope.map_or_else(|| moment.clone(), |r| r.mean_square(&moment, context))
    };
    let of_group = |j: usize| {
        let heads = (j * group..(j + 1) * group).map(of_head);
        heads.fold(Array2::zeros((size, size)), |sum, c| sum + c)
    };
    (0..kv_heads).map(of_group).collect()
}
