//! Rotary position embedding (RoPE) by frequencies: rotation of rows, and moments averaged over positions.

use ndarray::{Array1, Array2};

/// Largest relative squared difference between rows rotated by the model and by [`Rope`]. fp16 rounding causes 1e-6; a
/// wrong pair or frequency causes more than 1e-2.
const TOLERANCE: f64 = 1e-4;

/// The rotation of one head: the pair (x, y) of channels at position n becomes (x + iy) e^(i n theta), with a constant
/// frequency theta for each pair. Unpaired channels are not changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    size: usize,
    pairs: Vec<(usize, usize)>,
    frequencies: Vec<f64>,
}

impl Rope {
    /// A head of `size` channels whose `pairs` are rotated by `frequencies`, in radians per position. `None` if the two
    /// lists differ in length, a channel is out of range, or a channel is in two pairs.
    #[must_use]
    pub fn new(size: usize, pairs: Vec<(usize, usize)>, frequencies: Vec<f64>) -> Option<Self> {
        let mut channels: Vec<usize> = pairs.iter().flat_map(|&(x, y)| [x, y]).collect();
        channels.sort_unstable();
        let apart = channels.windows(2).all(|w| matches!(w, [a, b] if a < b));
        let inside = channels.last().is_none_or(|&last| last < size);
        let numbers = frequencies.iter().all(|f| f.is_finite());
        let fits = apart && inside && numbers && pairs.len() == frequencies.len() && size > 0;
        fits.then_some(Self {
            size,
            pairs,
            frequencies,
        })
    }

    /// d, the number of channels of a head.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The two channels of each rotated pair.
    #[must_use]
    pub fn pairs(&self) -> &[(usize, usize)] {
        &self.pairs
    }

    /// The frequency of each pair, in radians per position.
    #[must_use]
    pub fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    /// Rotates `rows` [rows, width] with any number of heads: row i by the position `position(i)`. A negative position
    /// undoes the rotation.
    pub fn rotate(&self, rows: &mut [f32], width: usize, position: &dyn Fn(usize) -> f64) {
        for (number, row) in rows.chunks_mut(width.max(1)).enumerate() {
            let n = position(number);
            let turns: Vec<(f64, f64)> =
                (self.frequencies.iter().map(|f| (f * n).sin_cos())).collect();
            for head in row.chunks_mut(self.size) {
                for (&(x, y), &(sin, cos)) in self.pairs.iter().zip(&turns) {
                    let (Some(&a), Some(&b)) = (head.get(x), head.get(y)) else {
                        continue;
                    };
                    let (a, b) = (f64::from(a), f64::from(b));
                    for (at, value) in [(x, a * cos - b * sin), (y, a * sin + b * cos)] {
                        if let Some(channel) = head.get_mut(at) {
                            *channel = value as f32;
                        }
                    }
                }
            }
        }
    }

    /// Whether `after` is `before` rotated by positions 0, 1, 2 ..., times a common factor; both [T, width].
    #[must_use]
    pub fn explains(&self, before: &[f32], after: &[f32], width: usize) -> bool {
        let mut rotated = before.to_vec();
        self.rotate(&mut rotated, width, &|row| row as f64);
        let sum = |a: &[f32], b: &[f32]| -> f64 {
            let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum()
        };
        let (own, cross) = (sum(&rotated, &rotated), sum(&rotated, after));
        let all = sum(after, after);
        // The residual of the least-squares fit of the factor: |after|² - (after . rotated)² / |rotated|².
        let off = if own > 0.0 {
            all - cross * cross / own
        } else {
            all
        };
        before.len() == after.len() && off.is_finite() && off <= TOLERANCE * all && cross >= 0.0
    }

    /// The mean over positions n = 0 to `positions` - 1 of R_n C R_nᵀ, for the second moment `c` [G*d, G*d] of
    /// unrotated rows.
    ///
    /// R_n turns channel i into `cos(n theta_i) x_i + s_i sin(n theta_i) x_p(i)`, where p(i) is the other channel of
    /// its pair and s_i is -1 for the first and +1 for the second of them (theta = s = 0 outside the pairs). So an
    /// element is
    ///
    /// ```text
    /// (R_n C R_nᵀ)_ij = cos_i cos_j C_ij + s_j cos_i sin_j C_i,p(j) + s_i sin_i cos_j C_p(i),j + s_i s_j sin_i sin_j C_p(i),p(j)
    /// ```
    ///
    /// and the products of sines and cosines are sums of those of theta_i - theta_j and theta_i + theta_j, whose means
    /// over n are the real and imaginary parts of phi(t) = mean of e^(itn).
    #[must_use]
    pub fn mean_square(&self, c: &Array2<f64>, positions: usize) -> Array2<f64> {
        let channels = self.channels();
        let means = |a: &Channel, b: &Channel| {
            let apart = phi(a.frequency - b.frequency, positions);
            let along = phi(a.frequency + b.frequency, positions);
            Products {
                cos_cos: (apart.0 + along.0) / 2.0,
                sin_sin: (apart.0 - along.0) / 2.0,
                sin_cos: (along.1 + apart.1) / 2.0,
                cos_sin: (along.1 - apart.1) / 2.0,
            }
        };
        let row = |a: &Channel| -> Vec<Products> { channels.iter().map(|b| means(a, b)).collect() };
        let table: Vec<Vec<Products>> = channels.iter().map(row).collect();
        let at = |i: usize, j: usize| c.get((i, j)).copied().unwrap_or(0.0);
        Array2::from_shape_fn(c.dim(), |(i, j)| {
            let (in_i, in_j) = (i % self.size, j % self.size);
            let (Some(a), Some(b)) = (channels.get(in_i), channels.get(in_j)) else {
                return 0.0;
            };
            let Some(mean) = table.get(in_i).and_then(|row| row.get(in_j)) else {
                return 0.0;
            };
            let (p, q) = (i - in_i + a.partner, j - in_j + b.partner);
            mean.cos_cos * at(i, j)
                + b.sign * mean.cos_sin * at(i, q)
                + a.sign * mean.sin_cos * at(p, j)
                + a.sign * b.sign * mean.sin_sin * at(p, q)
        })
    }

    /// The mean over positions n = 0 to `positions` - 1 of R_n m, for the mean `m` (`[G*d]`) of unrotated rows.
    #[must_use]
    pub fn mean(&self, m: &Array1<f64>, positions: usize) -> Array1<f64> {
        let channels = self.channels();
        Array1::from_shape_fn(m.len(), |i| {
            let inside = i % self.size;
            let at = |i: usize| m.get(i).copied().unwrap_or(0.0);
            channels.get(inside).map_or(0.0, |c| {
                let (cos, sin) = phi(c.frequency, positions);
                cos * at(i) + c.sign * sin * at(i - inside + c.partner)
            })
        })
    }

    /// The partner, frequency and sign of each channel of a head.
    fn channels(&self) -> Vec<Channel> {
        let alone = |channel| Channel {
            partner: channel,
            frequency: 0.0,
            sign: 0.0,
        };
        let mut channels: Vec<Channel> = (0..self.size).map(alone).collect();
        for (&(x, y), &frequency) in self.pairs.iter().zip(&self.frequencies) {
            for (own, partner, sign) in [(x, y, -1.0), (y, x, 1.0)] {
                if let Some(channel) = channels.get_mut(own) {
                    *channel = Channel {
                        partner,
                        frequency,
                        sign,
                    };
                }
            }
        }
        channels
    }
}

/// The partner p(i), frequency theta_i and sign s_i of a channel, as in [`Rope::mean_square`].
struct Channel {
    partner: usize,
    frequency: f64,
    sign: f64,
}

/// Means over positions of the products of the cosines and sines of two channels, the row's channel first.
struct Products {
    cos_cos: f64,
    sin_sin: f64,
    sin_cos: f64,
    cos_sin: f64,
}

/// phi(t), the mean of e^(itn) over n = 0 to `count` - 1: a geometric sum, `sin(Nt/2) / (N sin(t/2)) e^(i(N-1)t/2)`.
fn phi(t: f64, count: usize) -> (f64, f64) {
    let n = count.max(1) as f64;
    let half = (t / 2.0).sin();
    if half.abs() < 1e-12 {
        return (1.0, 0.0);
    }
    let size = (n * t / 2.0).sin() / (n * half);
    let angle = (n - 1.0) * t / 2.0;
    (size * angle.cos(), size * angle.sin())
}
