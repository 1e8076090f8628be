//! A basis of the latent in which rounding to few levels has the least cost, with equal cost in every channel.
//!
//! Rounding adds noise to channel i that is proportional to its variance S_ii, with the covariance S of the latent. The
//! resulting error of scores or outputs is proportional to S_ii W_ii, with W the weight of an error in the latent. In
//! another basis, z' = T z, the two matrices are T S Tᵀ and T⁻ᵀ W T⁻¹. The sum of S_ii W_ii is then at least (sum of
//! sigma)² / r, where sigma² are the eigenvalues of S W (Cauchy-Schwarz, applied twice). It reaches this bound if both
//! matrices are equal and all their diagonal elements are equal. In the basis of principal components the sum is the
//! sum of sigma², which is several times larger if the spectrum falls steeply.

use std::f64::consts::TAU;

use ndarray::{Array1, Array2, Array3, Axis, s};

use crate::factor::sample::order;
use crate::factor::spectral::{SpectralError, square_roots, symmetric_eigen};
use crate::factor::weighted::SideFactors;

/// Smallest eigenvalue of the error weight, relative to its largest; regularizes singular weights.
const RIDGE: f64 = 1e-10;
/// Smallest sigma² that is used for scaling, relative to the largest. A direction that is small on the calibration text
/// may be larger on another.
const FLOOR: f64 = 1e-8;

impl SideFactors {
    /// The same projection in the latent basis in which rounding costs least. `spread` [G*d, G*d] is the covariance of
    /// the cached rows; `weight` the weight of errors in them, one [d, d] per KV head (`None`: the identity). The first
    /// `first` channels and the other channels may be rounded to different numbers of levels: the first ones hold the
    /// directions with the largest costs, and within each of the two groups all channels cost the same. The mean
    /// variance of a channel is 1.
    ///
    /// # Errors
    /// [`SpectralError`] if an element is not finite.
    pub fn evened(
        &self,
        spread: &Array2<f64>,
        weight: Option<&[Array2<f64>]>,
        first: usize,
    ) -> Result<Self, SpectralError> {
        let rank = self.down.ncols();
        let s = self.down.t().dot(&spread.dot(&self.down));
        let mut w = Array2::zeros((rank, rank));
        for (head, up) in self.up.outer_iter().enumerate() {
            w += &match weight.and_then(|blocks| blocks.get(head)) {
                Some(block) => up.t().dot(&block.dot(&up)),
                None => up.t().dot(&up),
            };
        }
        let (root, inverse) = square_roots(&symmetric(&w), RIDGE)?;
        let eigen = symmetric_eigen(&symmetric(&root.dot(&s.dot(&root))))?;
        let largest = eigen.values.first().copied().unwrap_or_default();
        if largest <= 0.0 {
            return Ok(self.clone());
        }
        let sigma = eigen.values.mapv(|v| v.max(largest * FLOOR).sqrt());
        let mean = sigma.mean().unwrap_or(1.0);
        let stretch = sigma.mapv(|sigma| (sigma * mean).sqrt().recip());
        // T = spread_out Σ^(-1/2) Uᵀ W^(1/2), and its inverse.
        let mut turned = Array2::zeros((rank, rank));
        let first = first.min(rank);
        let (mut above, mut below) = turned.view_mut().split_at(Axis(0), first);
        above.slice_mut(s![.., ..first]).assign(&spread_out(first));
        below
            .slice_mut(s![.., first..])
            .assign(&spread_out(rank - first));
        let to = root.dot(&(&eigen.vectors * &stretch)).dot(&turned.t());
        let back = inverse.dot(&(&eigen.vectors / &stretch)).dot(&turned.t());
        let mut up = Array3::zeros(self.up.dim());
        for (mut new, old) in up.outer_iter_mut().zip(self.up.outer_iter()) {
            new.assign(&old.dot(&back));
        }
        Ok(Self {
            down: self.down.dot(&to),
            up,
            spectrum: self.spectrum.clone(),
        })
    }

    /// This projection, which selects whole heads, with each head in the basis in which rounding it costs least: w_d has one
    /// block [d, d] for each KV head, and w_u reads the channels of its own head alone. `spread` and `weight` as for
    /// [`Self::evened`]; `first` counts the channels of a head.
    ///
    /// # Errors
    /// [`SpectralError`] if an element is not finite.
    pub fn evened_by_head(
        &self,
        spread: &Array2<f64>,
        weight: Option<&[Array2<f64>]>,
        first: usize,
    ) -> Result<Self, SpectralError> {
        let (heads, size, _) = self.up.dim();
        let mut even = Self {
            down: Array2::zeros(self.down.dim()),
            up: Array3::zeros(self.up.dim()),
            spectrum: self.spectrum.clone(),
        };
        for head in 0..heads {
            let own = head * size..(head + 1) * size;
            let alone = Self {
                down: Array2::eye(size),
                up: Array2::eye(size).insert_axis(Axis(0)),
                spectrum: Array1::default(0),
            };
            let spread = spread.slice(s![own.clone(), own.clone()]).to_owned();
            let weight = weight.and_then(|blocks| blocks.get(head..=head));
            let alone = alone.evened(&spread, weight, first)?;
            let mut down = even.down.slice_mut(s![own.clone(), own.clone()]);
            down.assign(&alone.down);
            let mut up = even.up.slice_mut(s![head, .., own]);
            up.assign(&alone.up.index_axis(Axis(0), 0));
        }
        Ok(even)
    }
}

fn symmetric(a: &Array2<f64>) -> Array2<f64> {
    (a + &a.t()) * 0.5
}

/// An orthonormal matrix [r, r] with elements of about equal magnitude, so that it spreads every input over all
/// outputs: a discrete Hartley transform with shuffled columns of random sign. It exists for every r.
fn spread_out(rank: usize) -> Array2<f64> {
    let mut shuffled: Vec<u64> = (0..rank as u64).collect();
    shuffled.sort_by_key(|&k| order(k));
    let norm = (rank.max(1) as f64).sqrt();
    let mut matrix = Array2::zeros((rank, rank));
    for (mut column, k) in matrix.axis_iter_mut(Axis(1)).zip(shuffled) {
        let sign = if order(k) & 1 == 0 { 1.0 } else { -1.0 };
        for (j, element) in column.iter_mut().enumerate() {
            let angle = TAU * (j * k as usize % rank) as f64 / rank as f64;
            *element = sign * (angle.sin() + angle.cos()) / norm;
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two heads of four channels, of very different sizes, read by two weights.
    fn side() -> (SideFactors, Array2<f64>, Vec<Array2<f64>>) {
        let mix =
            |i: usize, j: usize| ((i * 7 + j * 3) as f64).sin() + if i == j { 2.0 } else { 0.0 };
        let basis = Array2::from_shape_fn((8, 8), |(i, j)| mix(i, j));
        let sizes = Array1::from_shape_fn(8, |i| 4.0f64.powi(-(i as i32)));
        let spread = (&basis * &sizes).dot(&basis.t());
        let weight = |g: usize| {
            let a = Array2::from_shape_fn((4, 4), |(i, j)| mix(i + g, j));
            a.dot(&a.t())
        };
        let side = SideFactors {
            down: Array2::eye(8),
            up: Array3::from_shape_fn((2, 4, 8), |(g, i, j)| f64::from(u8::from(4 * g + i == j))),
            spectrum: Array1::default(0),
        };
        (side, spread, vec![weight(0), weight(1)])
    }

    /// Variances of the channels, and weights of errors in them.
    fn diagonals(
        side: &SideFactors,
        spread: &Array2<f64>,
        weight: &[Array2<f64>],
    ) -> [Array1<f64>; 2] {
        let s = side.down.t().dot(&spread.dot(&side.down));
        let mut w = Array2::zeros(s.dim());
        for (up, block) in side.up.outer_iter().zip(weight) {
            w += &up.t().dot(&block.dot(&up));
        }
        [s.diag().to_owned(), w.diag().to_owned()]
    }

    #[test]
    fn every_channel_costs_about_alike_and_all_of_them_less_than_half() {
        let (side, spread, weight) = side();
        let even = side.evened(&spread, Some(&weight), 0).unwrap();
        let cost = |side: &SideFactors| {
            let [s, w] = diagonals(side, &spread, &weight);
            s * w
        };
        let (before, after) = (cost(&side), cost(&even));
        assert!(2.0 * after.sum() < before.sum(), "{before} {after}");
        let most = after.iter().fold(0.0f64, |m, &x| m.max(x));
        assert!(after.iter().all(|&x| 1.5 * x > most), "{after}");
        let [variances, _] = diagonals(&even, &spread, &weight);
        assert!(
            (variances.mean().unwrap() - 1.0).abs() < 1e-6,
            "{variances}"
        );
        assert!(
            variances.iter().all(|v| (0.3..3.0).contains(v)),
            "{variances}"
        );
    }

    #[test]
    fn heads_in_bases_of_their_own_cost_less_and_stay_apart() {
        let (side, spread, weight) = side();
        let even = side.evened_by_head(&spread, Some(&weight), 0).unwrap();
        let cost = |side: &SideFactors| {
            let [s, w] = diagonals(side, &spread, &weight);
            s * w
        };
        let (before, after) = (cost(&side), cost(&even));
        for head in [s![..4], s![4..]] {
            let (before, after) = (before.slice(head), after.slice(head));
            assert!(1.2 * after.sum() < before.sum(), "{before} {after}");
            let most = after.iter().fold(0.0f64, |m, &x| m.max(x));
            assert!(after.iter().all(|&x| 1.5 * x > most), "{after}");
        }
        for (head, up) in even.up.outer_iter().enumerate() {
            let apart =
                side.up.index_axis(Axis(0), head).dot(&side.down.t()) - up.dot(&even.down.t());
            assert!(apart.iter().all(|x| x.abs() < 1e-9), "{apart}");
            let other = up.slice(s![.., 4 - 4 * head..8 - 4 * head]);
            assert!(other.iter().all(|&x| x == 0.0), "{up}");
        }
    }

    #[test]
    fn the_first_channels_hold_what_costs_most() {
        let (side, spread, weight) = side();
        let parted = side.evened(&spread, Some(&weight), 4).unwrap();
        let [s, w] = diagonals(&parted, &spread, &weight);
        let cost = s * w;
        let (first, others) = (cost.slice(s![..4]), cost.slice(s![4..]));
        assert!(first.sum() > 10.0 * others.sum(), "{cost}");
        let most = first.iter().fold(0.0f64, |m, &x| m.max(x));
        assert!(first.iter().all(|&x| 1.5 * x > most), "{cost}");
    }

    #[test]
    fn the_projection_is_the_same_in_the_new_basis() {
        let (side, spread, weight) = side();
        let narrow = SideFactors {
            down: side.down.slice(s![.., ..5]).to_owned(),
            up: side.up.slice(s![.., .., ..5]).to_owned(),
            ..side
        };
        let even = narrow.evened(&spread, Some(&weight), 0).unwrap();
        for (old, new) in narrow.up.outer_iter().zip(even.up.outer_iter()) {
            let apart = narrow.down.dot(&old.t()) - even.down.dot(&new.t());
            assert!(apart.iter().all(|x| x.abs() < 1e-9), "{apart}");
        }
    }

    #[test]
    fn every_width_has_a_matrix_that_spreads_out() {
        for rank in [1, 2, 7, 8, 144, 192] {
            let matrix = spread_out(rank);
            let apart = matrix.dot(&matrix.t()) - Array2::<f64>::eye(rank);
            assert!(apart.iter().all(|x| x.abs() < 1e-9), "{rank}");
        }
    }
}
