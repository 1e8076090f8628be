//! The coordinates of the gradient descent, and Adam.

use ndarray::{Array1, Array2, Array3, ArrayView2, s};

use crate::factor::Factors;
use crate::factor::moments::{Moments, SideMoments};
use crate::factor::reconstruct::attention::Attention;
use crate::factor::spectral::SpectralError;
use crate::factor::weighted::{SideFactors, SideRoots};

/// Adam's usual constants (Kingma and Ba, algorithm 1).
const BETA: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// The coordinates of the gradient descent: A = M⁻¹ w_d, B = M w_u, and the bias in units of a typical output. Latent
/// channels have unit variance, so the lengths of their columns in A differ by orders of magnitude. Each column is
/// divided by its initial length, so that one Adam step changes every channel by about the same fraction.
pub struct Frame {
    key: SideFrame,
    value: SideFrame,
    bias: f64,
}

struct SideFrame {
    roots: SideRoots,
    /// The initial length of each column of A, [r]; 1 for a zero column.
    lengths: Array1<f64>,
}

impl SideFrame {
    fn new(moments: &SideMoments, start: &SideFactors) -> Result<Self, SpectralError> {
        let roots = SideRoots::of(moments)?;
        let down = roots.inverse_times(&start.down.view());
        let length = |column: ndarray::ArrayView1<f64>| column.dot(&column).sqrt();
        let lengths = down.columns().into_iter().map(length);
        // A zero column is not scaled.
        let lengths = lengths.map(|l| if l > 0.0 { l } else { 1.0 }).collect();
        Ok(Self { roots, lengths })
    }

    /// The coordinates of factors `down` and stacked `up`.
    fn enter(&self, down: &Array2<f64>, up: &Array2<f64>) -> [Array2<f64>; 2] {
        let a = self.roots.inverse_times(&down.view()) / &self.lengths;
        [a, self.roots.times(&up.view()) * &self.lengths]
    }

    /// The factors at coordinates `a` and `b`.
    fn leave(&self, a: &Array2<f64>, b: &Array2<f64>) -> [Array2<f64>; 2] {
        let down = self.roots.times(&(a * &self.lengths).view());
        let up = self.roots.inverse_times(&(b / &self.lengths).view());
        [down, up]
    }

    /// Converts a gradient with respect to the factors to these coordinates.
    fn pull(&self, down: &Array2<f64>, up: &Array2<f64>) -> [Array2<f64>; 2] {
        let a = self.roots.times(&down.view()) * &self.lengths;
        [a, self.roots.inverse_times(&up.view()) / &self.lengths]
    }
}

impl Frame {
    pub fn new(
        moments: &Moments,
        attention: &Attention,
        start: &Factors,
        unit: f64,
    ) -> Result<Self, SpectralError> {
        let reader = attention.readers.as_ref().map_or(1.0, |g| {
            g.diag().mean().unwrap_or(1.0).max(f64::MIN_POSITIVE)
        });
        let width = (attention.heads * attention.value_size) as f64;
        Ok(Self {
            key: SideFrame::new(&moments.key, &start.key)?,
            value: SideFrame::new(&moments.value, &start.value)?,
            bias: (unit / reader / width.max(1.0)).sqrt(),
        })
    }

    pub fn enter(&self, factors: &Factors) -> Vec<f64> {
        let mut point = Vec::new();
        for (frame, side) in [(&self.key, &factors.key), (&self.value, &factors.value)] {
            let sides = frame.enter(&side.down, &stacked(&side.up));
            point.extend(sides.iter().flatten());
        }
        if let Some(bias) = &factors.bias {
            point.extend(bias.iter().map(|b| b / self.bias));
        }
        point
    }

    pub fn leave(&self, point: &[f64], like: &Factors) -> Factors {
        let mut rest = point;
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at(count.min(rest.len()));
            rest = left;
            Array1::from(taken.to_vec())
        };
        let mut side = |frame: &SideFrame, like: &SideFactors| {
            let shape = like.down.dim();
            let down = take(like.down.len()).into_shape_with_order(shape);
            let up = take(like.up.len()).into_shape_with_order(shape);
            let shaped = |part: Result<_, _>| part.unwrap_or_else(|_| like.down.clone());
            let [down, up] = frame.leave(&shaped(down), &shaped(up));
            SideFactors {
                down,
                up: blocks(&up, like.up.dim()),
                spectrum: like.spectrum.clone(),
            }
        };
        let (key, value) = (side(&self.key, &like.key), side(&self.value, &like.value));
        let bias = like.bias.as_ref().map(|bias| {
            let values = take(bias.len()).into_shape_with_order(bias.dim());
            values.unwrap_or_else(|_| bias.clone()) * self.bias
        });
        Factors { key, value, bias }
    }

    /// The gradient with respect to the factors, divided by `norm`, in these coordinates.
    pub fn pull(&self, slope: &Factors, norm: f64) -> Vec<f64> {
        let mut pulled = Vec::new();
        for (frame, side) in [(&self.key, &slope.key), (&self.value, &slope.value)] {
            let sides = frame.pull(&side.down, &stacked(&side.up));
            pulled.extend(sides.iter().flatten().map(|x| x / norm));
        }
        if let Some(bias) = &slope.bias {
            pulled.extend(bias.iter().map(|b| b * self.bias / norm));
        }
        pulled
    }
}

/// [G, d, r] as [G*d, r].
fn stacked(up: &Array3<f64>) -> Array2<f64> {
    let (heads, size, rank) = up.dim();
    Array2::from_shape_fn((heads * size, rank), |(i, j)| {
        up.get((i / size.max(1), i % size.max(1), j))
            .copied()
            .unwrap_or_default()
    })
}

/// [G*d, r] as [G, d, r].
fn blocks(matrix: &Array2<f64>, (heads, size, rank): (usize, usize, usize)) -> Array3<f64> {
    let mut up = Array3::zeros((heads, size, rank));
    for (head, mut block) in up.outer_iter_mut().enumerate() {
        let rows: ArrayView2<f64> = matrix.slice(s![head * size..(head + 1) * size, ..]);
        block.assign(&rows);
    }
    up
}

/// Adam on one parameter vector.
pub struct Adam {
    mean: Vec<f64>,
    square: Vec<f64>,
    steps: i32,
}

impl Adam {
    pub fn new(length: usize) -> Self {
        Self {
            mean: vec![0.0; length],
            square: vec![0.0; length],
            steps: 0,
        }
    }

    pub fn step(&mut self, point: &mut [f64], slope: &[f64], rate: f64) {
        self.steps += 1;
        let (b1, b2) = BETA;
        let (c1, c2) = (1.0 - b1.powi(self.steps), 1.0 - b2.powi(self.steps));
        let state = self.mean.iter_mut().zip(&mut self.square);
        for ((x, g), (m, v)) in point.iter_mut().zip(slope).zip(state) {
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *x -= rate * (*m / c1) / ((*v / c2).sqrt() + EPSILON);
        }
    }
}
