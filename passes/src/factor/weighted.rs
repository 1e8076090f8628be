//! The projection that loses least: weighted principal components of what is cached.
//!
//! With C the moment of the cached rows and M the square root of the readers' weight, the best rank-r projection keeps
//! the first eigenvectors U of M C M, and then w_d = M U, w_u = M⁻¹ U. Stacked over the heads, w_u is the inverse of
//! w_d at full rank, so nothing is lost there whatever C and M are.

use ndarray::{Array1, Array2, Array3, s};

use super::moments::SideMoments;
use super::spectral::{SpectralError, square_roots, symmetric_eigen};

/// Lifts the readers' weight where it is singular, relative to its largest eigenvalue.
const RIDGE: f64 = 1e-10;
/// Smallest second moment, relative to the largest, that a latent channel is scaled up from: below it there is only
/// rounding noise, which must not be blown up.
const FLOOR: f64 = 1e-8;

/// The two maps of one side.
#[derive(Debug, Clone)]
pub struct SideFactors {
    /// Cached rows to latent, [G*d, r].
    pub down: Array2<f64>,
    /// Latent to each head, [G, d, r].
    pub up: Array3<f64>,
    /// Expected share of the weighted second moment that the projection loses, 0 to 1.
    pub predicted_error: f64,
}

/// Factors of rank `rank` for `kv_heads` heads; columns beyond the full rank are zero.
pub fn factors(
    moments: &SideMoments,
    kv_heads: usize,
    rank: usize,
) -> Result<SideFactors, SpectralError> {
    let full = moments.cached.nrows();
    let size = full / kv_heads.max(1);
    // At full rank the weighting changes nothing but the rounding, so it is left out.
    let weight = moments.weight.as_ref().filter(|_| rank < full);
    let roots = match weight {
        Some(blocks) => blocks
            .iter()
            .map(|block| square_roots(block, RIDGE))
            .collect::<Result<Vec<_>, _>>()?,
        None => Vec::new(),
    };
    let root = |head: usize| roots.get(head);
    let mut weighted = moments.cached.clone();
    for (i, _) in roots.iter().enumerate() {
        if let Some((m, _)) = root(i) {
            let rows = weighted.slice(s![i * size..(i + 1) * size, ..]).to_owned();
            weighted
                .slice_mut(s![i * size..(i + 1) * size, ..])
                .assign(&m.dot(&rows));
        }
    }
    for (i, _) in roots.iter().enumerate() {
        if let Some((m, _)) = root(i) {
            let columns = weighted.slice(s![.., i * size..(i + 1) * size]).to_owned();
            weighted
                .slice_mut(s![.., i * size..(i + 1) * size])
                .assign(&columns.dot(m));
        }
    }
    let symmetric = (&weighted + &weighted.t()) * 0.5;
    let eigen = symmetric_eigen(&symmetric)?;
    let kept = rank.min(full);
    let values = eigen.values.mapv(|v| v.max(0.0));
    let total: f64 = values.sum();
    let lost: f64 = values.iter().skip(kept).sum();
    let scale = channel_scale(&values);
    let mut down = Array2::zeros((full, rank));
    let mut up = Array3::zeros((kv_heads, size, rank));
    for head in 0..kv_heads {
        let block = eigen
            .vectors
            .slice(s![head * size..(head + 1) * size, ..kept]);
        let (d, u) = match root(head) {
            Some((m, inverse)) => (m.dot(&block), inverse.dot(&block)),
            None => (block.to_owned(), block.to_owned()),
        };
        let scale = scale.slice(s![..kept]);
        down.slice_mut(s![head * size..(head + 1) * size, ..kept])
            .assign(&(&d * &scale));
        up.slice_mut(s![head, .., ..kept]).assign(&(&u / &scale));
    }
    Ok(SideFactors {
        down,
        up,
        predicted_error: if total > 0.0 { lost / total } else { 0.0 },
    })
}

/// Gives every latent channel unit second moment, which keeps half precision in range.
fn channel_scale(values: &Array1<f64>) -> Array1<f64> {
    let largest = values.first().copied().unwrap_or(0.0);
    if largest <= 0.0 {
        return Array1::ones(values.len());
    }
    values.mapv(|v| 1.0 / v.max(largest * FLOOR).sqrt())
}
