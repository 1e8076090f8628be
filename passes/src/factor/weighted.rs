//! The optimal projection: weighted principal components of the cached rows.
//!
//! With C the second moment of the cached rows and M the square root of the error weight, the best rank-r projection
//! uses the first r eigenvectors U of M C M: w_d = M U, w_u = M⁻¹ U. At full rank, where any basis is exact, the
//! factors are identities.

use ndarray::{Array1, Array2, Array3, ArrayView2, s};

use crate::factor::moments::SideMoments;
use crate::factor::spectral::{SpectralError, square_roots, symmetric_eigen};

/// Smallest eigenvalue of the error weight, relative to its largest; regularizes singular weights.
const RIDGE: f64 = 1e-10;
/// Smallest second moment, relative to the largest, that is used to normalize a latent channel. A channel that is small
/// on the calibration text may be larger on another; fp16 has room for the resulting factor of up to 100.
const FLOOR: f64 = 1e-4;

/// The factors of the keys or the values.
#[derive(Debug, Clone)]
pub struct SideFactors {
    /// Cached rows to latent, [G*d, r].
    pub down: Array2<f64>,
    /// Latent to each head, [G, d, r], or [H, d, r] with a block for each query head.
    pub up: Array3<f64>,
    /// Weighted second moment along each eigenvector, largest first; `down` keeps the first r. Empty at full rank.
    pub spectrum: Array1<f64>,
}

impl SideFactors {
    /// Share of the weighted second moment that the projection loses, from 0 to 1.
    #[must_use]
    pub fn predicted_error(&self) -> f64 {
        let (total, lost) = (
            self.spectrum.sum(),
            self.spectrum.iter().skip(self.down.ncols()).sum::<f64>(),
        );
        if total > 0.0 { lost / total } else { 0.0 }
    }
}

/// M and M⁻¹: the square root of the error weight of keys or values and its inverse, one block per KV head. The
/// identity without weights.
#[derive(Debug, Clone)]
pub struct SideRoots {
    blocks: Vec<(Array2<f64>, Array2<f64>)>,
}

impl SideRoots {
    /// Computes the square roots of the weights of `moments`.
    pub fn of(moments: &SideMoments) -> Result<Self, SpectralError> {
        let roots = |block| square_roots(block, RIDGE);
        let blocks = moments.weight.iter().flatten().map(roots);
        Ok(Self {
            blocks: blocks.collect::<Result<_, _>>()?,
        })
    }

    /// M x, for x [G*d, any].
    pub fn times(&self, x: &ArrayView2<f64>) -> Array2<f64> {
        self.by_block(x, |(root, _)| root)
    }

    /// M⁻¹ x, for x [G*d, any].
    pub fn inverse_times(&self, x: &ArrayView2<f64>) -> Array2<f64> {
        self.by_block(x, |(_, inverse)| inverse)
    }

    fn by_block(
        &self,
        x: &ArrayView2<f64>,
        pick: impl Fn(&(Array2<f64>, Array2<f64>)) -> &Array2<f64>,
    ) -> Array2<f64> {
        let mut y = x.to_owned();
        let mut first = 0;
        for block in &self.blocks {
            let matrix = pick(block);
            let rows = s![first..first + matrix.nrows(), ..];
            y.slice_mut(rows).assign(&matrix.dot(&x.slice(rows)));
            first += matrix.nrows();
        }
        y
    }
}

/// Factors of rank `rank` for `kv_heads` heads; columns beyond the full rank are zero.
pub fn factors(
    moments: &SideMoments,
    kv_heads: usize,
    rank: usize,
) -> Result<SideFactors, SpectralError> {
    let full = moments.cached.nrows();
    let size = full / kv_heads.max(1);
    if rank >= full {
        return Ok(whole(full, kv_heads, rank));
    }
    let Principal {
        down,
        up: stacked,
        spectrum,
    } = principal(moments, rank)?;
    let mut up = Array3::zeros((kv_heads, size, rank));
    for (head, mut block) in up.outer_iter_mut().enumerate() {
        block.assign(&stacked.slice(s![head * size..(head + 1) * size, ..]));
    }
    Ok(SideFactors { down, up, spectrum })
}

/// Weighted principal components of rows of n channels.
#[derive(Debug, Clone)]
pub struct Principal {
    /// Rows to latent, w_d [n, r].
    pub down: Array2<f64>,
    /// Latent to rows, w_u [n, r].
    pub up: Array2<f64>,
    /// Weighted second moment along each of the n directions, largest first.
    pub spectrum: Array1<f64>,
}

/// The first `rank` weighted principal components.
///
/// # Errors
/// [`SpectralError`] if the moments are not finite.
pub fn principal(moments: &SideMoments, rank: usize) -> Result<Principal, SpectralError> {
    let roots = SideRoots::of(moments)?;
    let left = roots.times(&moments.cached.view());
    let weighted = roots.times(&left.t());
    let symmetric = (&weighted + &weighted.t()) * 0.5;
    let eigen = symmetric_eigen(&symmetric)?;
    let values = eigen.values.mapv(|v| v.max(0.0));
    let scale = match moments.measured {
        true => channel_scale(&values),
        false => Array1::ones(values.len()),
    };
    let scale = scale.slice(s![..rank]);
    let kept = eigen.vectors.slice(s![.., ..rank]);
    let down = &roots.times(&kept) * &scale;
    let up = &roots.inverse_times(&kept) / &scale;
    Ok(Principal {
        down,
        up,
        spectrum: values,
    })
}

/// Identity factors for the full rank, which do not even cause rounding errors. Columns beyond the full rank are zero.
fn whole(full: usize, kv_heads: usize, rank: usize) -> SideFactors {
    let size = full / kv_heads.max(1);
    let one = |same: bool| if same { 1.0 } else { 0.0 };
    SideFactors {
        down: Array2::from_shape_fn((full, rank), |(i, j)| one(i == j)),
        up: Array3::from_shape_fn((kv_heads, size, rank), |(g, i, j)| one(g * size + i == j)),
        spectrum: Array1::default(0),
    }
}

/// The scale of each latent channel that gives it unit second moment, which keeps fp16 in range.
fn channel_scale(values: &Array1<f64>) -> Array1<f64> {
    let largest = values.first().copied().unwrap_or(0.0);
    if largest <= 0.0 {
        return Array1::ones(values.len());
    }
    values.mapv(|v| 1.0 / v.max(largest * FLOOR).sqrt())
}
