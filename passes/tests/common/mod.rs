//! Reproducible random matrices, and how far two matrices are apart.
#![allow(dead_code)] // Each test binary uses its own part.

pub mod attention;

use ndarray::Array2;

/// `SplitMix64`, with sums of uniform numbers for normal ones.
pub struct Random(pub u64);

impl Random {
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    pub fn matrix(&mut self, rows: usize, columns: usize) -> Array2<f64> {
        Array2::from_shape_fn((rows, columns), |_| self.normal())
    }

    /// Orthonormal columns, by Gram and Schmidt, twice for the sake of rounding.
    pub fn orthonormal(&mut self, n: usize, columns: usize) -> Array2<f64> {
        let mut q = self.matrix(n, columns);
        for i in 0..columns {
            for _ in 0..2 {
                for j in 0..i {
                    let other = q.column(j).to_owned();
                    let along = other.dot(&q.column(i));
                    q.column_mut(i).scaled_add(-along, &other);
                }
            }
            let length = q.column(i).dot(&q.column(i)).sqrt();
            q.column_mut(i).mapv_inplace(|x| x / length);
        }
        q
    }

    pub fn positive(&mut self, n: usize) -> Array2<f64> {
        let a = self.matrix(n, 2 * n);
        a.dot(&a.t()) / (2 * n) as f64
    }
}

pub fn largest(a: &Array2<f64>) -> f64 {
    a.iter().fold(0.0, |m, x| m.max(x.abs()))
}

pub fn assert_close(what: &str, a: &Array2<f64>, b: &Array2<f64>, tolerance: f64) {
    let (apart, scale) = (largest(&(a - b)), largest(b).max(f64::MIN_POSITIVE));
    assert!(
        apart <= tolerance * scale,
        "{what}: {apart:e} apart at {scale:e}"
    );
}
