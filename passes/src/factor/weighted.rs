//! The projection that loses least: weighted principal components of what is cached.
//!
//! With C the moment of the cached rows and M the square root of the readers' weight, the best rank-r projection keeps
//! the first eigenvectors U of M C M, and then w_d = M U, w_u = M⁻¹ U. At full rank, where any basis will do, channels are
//! left as they are.

use ndarray::{Array1, Array2, Array3, ArrayView2, s};

use crate::factor::moments::SideMoments;
use crate::factor::spectral::{SpectralError, square_roots, symmetric_eigen};

/// Lifts the readers' weight where it is singular, relative to its largest eigenvalue.
const RIDGE: f64 = 1e-10;
/// Smallest second moment, relative to the largest, that a latent channel is scaled up from: what is smaller on the text
/// that was read may be larger on another, and half precision has room for a factor of a hundred.
const FLOOR: f64 = 1e-4;

/// The two maps of one side.
#[derive(Debug, Clone)]
pub struct SideFactors {
    /// Cached rows to latent, [G*d, r].
    pub down: Array2<f64>,
    /// Latent to each head, [G, d, r].
    pub up: Array3<f64>,
    /// Weighted second moment along each direction, largest first, of which `down` keeps the first; empty where nothing
    /// is left out.
    pub spectrum: Array1<f64>,
}

impl SideFactors {
    /// Expected share of the weighted second moment that the projection loses, 0 to 1.
    #[must_use]
    pub fn predicted_error(&self) -> f64 {
        let (total, lost) = (
            self.spectrum.sum(),
            self.spectrum.iter().skip(self.down.ncols()).sum::<f64>(),
        );
        if total > 0.0 { lost / total } else { 0.0 }
    }
}

/// M and M⁻¹ of one side: the square root of the readers' weight, a block a KV head; the identity without weights.
#[derive(Debug, Clone)]
pub struct SideRoots {
    blocks: Vec<(Array2<f64>, Array2<f64>)>,
}

impl SideRoots {
    /// Takes the roots of the weights of `moments`.
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
    let stacked = &roots.inverse_times(&kept) / &scale;
    let mut up = Array3::zeros((kv_heads, size, rank));
    for (head, mut block) in up.outer_iter_mut().enumerate() {
        block.assign(&stacked.slice(s![head * size..(head + 1) * size, ..]));
    }
    Ok(SideFactors {
        down,
        up,
        spectrum: values,
    })
}

/// Factors that lose nothing: every basis does at full rank, and the channels' own is the one in which nothing is even
/// rounded. Columns beyond the full rank are zero.
fn whole(full: usize, kv_heads: usize, rank: usize) -> SideFactors {
    let size = full / kv_heads.max(1);
    let one = |same: bool| if same { 1.0 } else { 0.0 };
    SideFactors {
        down: Array2::from_shape_fn((full, rank), |(i, j)| one(i == j)),
        up: Array3::from_shape_fn((kv_heads, size, rank), |(g, i, j)| one(g * size + i == j)),
        spectrum: Array1::default(0),
    }
}

/// Gives every latent channel unit second moment, which keeps half precision in range.
fn channel_scale(values: &Array1<f64>) -> Array1<f64> {
    let largest = values.first().copied().unwrap_or(0.0);
    if largest <= 0.0 {
        return Array1::ones(values.len());
    }
    values.mapv(|v| 1.0 / v.max(largest * FLOOR).sqrt())
}
