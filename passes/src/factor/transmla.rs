//! The factorization of TransMLA (arXiv 2502.07864), for comparison: RoPE is concentrated in one head and dropped from
//! the other components, which share one latent with the values.
//!
//! ```text
//! RoRoPE      for each frequency, U of E[x xᵀ + y yᵀ] over the heads, x and y the two halves of its pairs
//! k_rope      the first component of every frequency, rotated: d numbers
//! k_nope      the other components, never rotated
//! c = [k_nope / alpha, v] R        joint principal components, alpha the ratio of their mean sizes
//! ```
//!
//! FreqFold treats `fold` neighbouring frequencies as one. The method is not exact at any rank, because it drops
//! rotation.

use ndarray::{Array1, Array2, Array3, s};

use crate::factor::spectral::{SpectralError, symmetric_eigen};

/// The factors of one layer; n = G*d, m = G*dv.
#[derive(Debug, Clone)]
pub struct DecoupledFactors {
    /// Unrotated keys to the rotated head, [n, d].
    pub rope_key: Array2<f64>,
    /// Unrotated queries to the rotated head, for each KV head, [G, d, d].
    pub rope_query: Array3<f64>,
    /// Unrotated keys to the latent, [n, r].
    pub down_key: Array2<f64>,
    /// Values to the latent, [m, r].
    pub down_value: Array2<f64>,
    /// Unrotated queries to the latent, [G, d, r].
    pub up_query: Array3<f64>,
    /// Latent to values, [G, dv, r].
    pub up_value: Array3<f64>,
}

/// Second moments of unrotated keys and values, and the pairing of channels.
#[derive(Debug, Clone, Copy)]
pub struct Joint<'a> {
    /// E[k kᵀ], [n, n].
    pub key: &'a Array2<f64>,
    /// E[v vᵀ], [m, m].
    pub value: &'a Array2<f64>,
    /// E[k vᵀ], [n, m].
    pub cross: &'a Array2<f64>,
    /// G.
    pub kv_heads: usize,
    /// Whether neighbouring channels are paired; otherwise channels of the first half with those of the second.
    pub interleaved: bool,
}

/// Factors with a latent of rank `rank` besides the rotated head of size d.
pub fn transmla(
    joint: &Joint,
    fold: usize,
    rank: usize,
) -> Result<DecoupledFactors, SpectralError> {
    let (n, m) = (joint.key.nrows(), joint.value.nrows());
    let (size, value_size) = (n / joint.kv_heads.max(1), m / joint.kv_heads.max(1));
    let turn = turned(joint, size, fold.max(1))?;
    let (rope, nope) = (turn.slice(s![.., ..size]), turn.slice(s![.., size..]));
    // alpha balances the scales of keys and values, so that neither dominates the joint components.
    let nope_key = nope.t().dot(joint.key).dot(&nope);
    let mean_size = |c: &Array2<f64>| c.diag().mapv(|x| x.max(0.0).sqrt()).mean().unwrap_or(0.0);
    let (keys, values) = (mean_size(&nope_key), mean_size(joint.value));
    let alpha = if keys > 0.0 && values > 0.0 {
        keys / values
    } else {
        1.0
    };
    let rest = nope.ncols();
    let mut both = Array2::zeros((rest + m, rest + m));
    both.slice_mut(s![..rest, ..rest])
        .assign(&(&nope_key / (alpha * alpha)));
    let cross = nope.t().dot(joint.cross) / alpha;
    both.slice_mut(s![..rest, rest..]).assign(&cross);
    both.slice_mut(s![rest.., ..rest]).assign(&cross.t());
    both.slice_mut(s![rest.., rest..]).assign(joint.value);
    let eigen = symmetric_eigen(&both)?;
    let kept = rank.min(rest + m);
    let mut components = Array2::zeros((rest + m, rank));
    components
        .slice_mut(s![.., ..kept])
        .assign(&eigen.vectors.slice(s![.., ..kept]));
    let (of_keys, of_values) = (
        components.slice(s![..rest, ..]),
        components.slice(s![rest.., ..]),
    );
    let back = nope.dot(&of_keys) * alpha;
    Ok(DecoupledFactors {
        rope_key: rope.to_owned(),
        rope_query: by_head(&rope.to_owned(), size),
        down_key: nope.dot(&of_keys) / alpha,
        down_value: of_values.to_owned(),
        up_query: by_head(&back, size),
        up_value: by_head(&of_values.to_owned(), value_size),
    })
}

/// The orthogonal map [n, n] of keys to components. The first d components keep their rotation, in the order of a
/// head's channels.
fn turned(joint: &Joint, size: usize, fold: usize) -> Result<Array2<f64>, SpectralError> {
    let heads = joint.kv_heads;
    let half = size / 2;
    let places = |frequency: usize| match joint.interleaved {
        true => [2 * frequency, 2 * frequency + 1],
        false => [frequency, frequency + half],
    };
    let mut turn = Array2::zeros((heads * size, heads * size));
    let mut next = size;
    let all: Vec<usize> = (0..half).collect();
    for group in all.chunks(fold) {
        // (head, frequency) of all channel pairs of this group.
        let channels: Vec<(usize, usize)> = (0..heads)
            .flat_map(|head| group.iter().map(move |f| (head, *f)))
            .collect();
        let at = |(head, frequency): (usize, usize), part: usize| {
            head * size + places(frequency).get(part).copied().unwrap_or(0)
        };
        let moment = Array2::from_shape_fn((channels.len(), channels.len()), |(a, b)| {
            let pair = |part| {
                let (Some(a), Some(b)) = (channels.get(a), channels.get(b)) else {
                    return 0.0;
                };
                let place = (at(*a, part), at(*b, part));
                joint.key.get(place).copied().unwrap_or(0.0)
            };
            pair(0) + pair(1)
        });
        let eigen = symmetric_eigen(&moment)?;
        for (number, vector) in eigen.vectors.columns().into_iter().enumerate() {
            for part in 0..2 {
                let column = match group.get(number) {
                    Some(frequency) => places(*frequency).get(part).copied().unwrap_or(0),
                    None => {
                        next += 1;
                        next - 1
                    }
                };
                write(&mut turn, column, &channels, &vector.to_owned(), |c| {
                    at(c, part)
                });
            }
        }
    }
    Ok(turn)
}

fn write(
    turn: &mut Array2<f64>,
    column: usize,
    channels: &[(usize, usize)],
    vector: &Array1<f64>,
    at: impl Fn((usize, usize)) -> usize,
) {
    for (channel, weight) in channels.iter().zip(vector) {
        if let Some(place) = turn.get_mut((at(*channel), column)) {
            *place = *weight;
        }
    }
}

/// [G*size, r] as [G, size, r].
fn by_head(matrix: &Array2<f64>, size: usize) -> Array3<f64> {
    let (rows, columns) = matrix.dim();
    let heads = rows / size.max(1);
    Array3::from_shape_fn((heads, size, columns), |(g, i, j)| {
        matrix.get((g * size + i, j)).copied().unwrap_or(0.0)
    })
}
