//! One latent of the keys before rotation and the values of a token together.
//!
//! A key and a value of a token are two linear maps of one hidden state, so a basis of both describes them with fewer
//! numbers than a basis of each. With x = [k, v], the factors are weighted principal components of x: errors of k are
//! weighted by the queries, errors of v by o_proj, each relative to the weighted size of k or v, so that the latent loses
//! equal shares of both. The latent has as many numbers as the caches of keys and of values together; each cache holds a
//! part of it.

use ndarray::{Array1, Array2, Array3, Axis, concatenate, s};

use crate::factor::moments::SideMoments;
use crate::factor::spectral::SpectralError;
use crate::factor::weighted::{self, Principal, SideFactors, principal};
use crate::factor::{Factors, Ranks, Rounding};

/// Factors of one latent c [R] of keys and values, R = r_k + r_v; n = G*d, m = G*dv.
#[derive(Debug, Clone)]
pub struct JointFactors {
    /// `down` [n + m, r_k] computes the part of c in the cache of the keys; `up` [G, d, R] rebuilds keys from c.
    pub key: SideFactors,
    /// `down` [n + m, r_v] computes the part in the cache of the values; `up` [G, dv, R] rebuilds values.
    pub value: SideFactors,
    /// What is added to rebuilt keys, [G, d], or [H, d] with a block for each query head.
    pub key_bias: Option<Array2<f64>>,
    /// Bias correction [H, dv] of the outputs.
    pub bias: Option<Array2<f64>>,
    /// Weighted second moment along each direction, largest first; c keeps the first R. Empty at full rank.
    pub spectrum: Array1<f64>,
}

impl JointFactors {
    /// Share of the weighted second moment that the latent loses, from 0 to 1.
    #[must_use]
    pub fn predicted_error(&self) -> f64 {
        let kept = self.key.down.ncols() + self.value.down.ncols();
        let lost: f64 = self.spectrum.iter().skip(kept).sum();
        match self.spectrum.sum() {
            total if total > 0.0 => lost / total,
            _ => 0.0,
        }
    }

    /// The factors with `rows` [n + m] added to all rebuilt keys and values, for H = `heads` query heads. To values it is added
    /// as a bias of the outputs, which is the same if the probabilities of each query sum to one.
    #[must_use]
    fn adding(mut self, rows: &Array1<f64>, heads: usize) -> Self {
        let by_head = |side: &SideFactors, first: usize| {
            let (kv_heads, size, _) = side.up.dim();
            Array2::from_shape_fn((kv_heads, size), |(head, i)| {
                rows.get(first + head * size + i)
                    .copied()
                    .unwrap_or_default()
            })
        };
        let keys = by_head(&self.key, 0);
        let values = by_head(&self.value, keys.len());
        let kv_heads = values.nrows();
        let group = (heads / kv_heads.max(1)).max(1);
        let read: Vec<usize> = (0..heads).map(|head| head / group).collect();
        let values = values.select(Axis(0), &read);
        let sum = |old: Option<Array2<f64>>, new: Array2<f64>| match old {
            Some(old) => Some(old + new),
            None => Some(new),
        };
        self.key_bias = sum(self.key_bias.take(), keys);
        self.bias = sum(self.bias.take(), values);
        self
    }

    /// The factors with the centres of `rounding` added to what is rebuilt, for H = `heads` query heads.
    #[must_use]
    pub fn giving_back(self, rounding: &Rounding, heads: usize) -> Self {
        let (Some(key), Some(value)) = (&rounding.key.centre, &rounding.value.centre) else {
            return self;
        };
        let centre = concatenate![Axis(0), key.view(), value.view()];
        let rows = |side: &SideFactors| {
            let blocks = side.up.outer_iter().map(|block| block.dot(&centre));
            blocks.flatten().collect::<Vec<f64>>()
        };
        let rows = [rows(&self.key), rows(&self.value)].concat();
        self.adding(&Array1::from_vec(rows), heads)
    }

    /// The factors with the scales of `rounding` multiplied into w_uk and w_uv, for latents that are read as integers.
    #[must_use]
    pub fn reading_integers(&self, rounding: &Rounding) -> Self {
        let scales = [&rounding.key.scale, &rounding.value.scale];
        let scales: Array1<f64> = scales.into_iter().flatten().copied().collect();
        let mut scaled = self.clone();
        scaled.key.up *= &scales;
        scaled.value.up *= &scales;
        scaled
    }
}

/// Two latents as parts of one: the part of the keys does not depend on values, and the other way round.
impl From<&Factors> for JointFactors {
    fn from(factors: &Factors) -> Self {
        let (key, value) = (&factors.key, &factors.value);
        let below = |side: &SideFactors, rows: usize| Array2::zeros((rows, side.down.ncols()));
        let beside = |up: &Array3<f64>, columns: usize| {
            let (heads, size, _) = up.dim();
            Array3::zeros((heads, size, columns))
        };
        let (n, m) = (key.down.nrows(), value.down.nrows());
        let (r_k, r_v) = (key.down.ncols(), value.down.ncols());
        Self {
            key: SideFactors {
                down: concatenate![Axis(0), key.down, below(key, m)],
                up: concatenate![Axis(2), key.up, beside(&key.up, r_v)],
                spectrum: Array1::default(0),
            },
            value: SideFactors {
                down: concatenate![Axis(0), below(value, n), value.down],
                up: concatenate![Axis(2), beside(&value.up, r_k), value.up],
                spectrum: Array1::default(0),
            },
            key_bias: None,
            bias: factors.bias.clone(),
            spectrum: Array1::default(0),
        }
    }
}

/// The moments of keys before rotation and of values together; n = G*d, m = G*dv.
#[derive(Debug, Clone)]
pub struct JointMoments {
    /// E[k kᵀ], [n, n], and the weight of errors in k.
    pub key: SideMoments,
    /// E[v vᵀ], [m, m], and the weight of errors in v.
    pub value: SideMoments,
    /// E[k vᵀ], [n, m].
    pub cross: Array2<f64>,
    /// The means of k and v that the moments leave out, `[n]` and `[m]`, if they are centred.
    pub means: Option<(Array1<f64>, Array1<f64>)>,
}

/// Factors of rank `ranks` for `kv_heads` KV heads, which `heads` query heads read.
///
/// # Errors
/// [`SpectralError`] if the moments are not finite.
pub fn joint(
    moments: &JointMoments,
    (heads, kv_heads): (usize, usize),
    ranks: Ranks,
) -> Result<JointFactors, SpectralError> {
    let (n, m) = moments.cross.dim();
    let rank = ranks.key + ranks.value;
    if rank >= n + m {
        let whole = |side, rank| weighted::factors(side, kv_heads, rank);
        return Ok(JointFactors::from(&Factors {
            key: whole(&moments.key, ranks.key)?,
            value: whole(&moments.value, ranks.value)?,
            bias: None,
        }));
    }
    let weight = [&moments.key, &moments.value].map(|side| relative(side, kv_heads));
    let left = concatenate![Axis(0), moments.key.cached, moments.cross.t()];
    let right = concatenate![Axis(0), moments.cross.view(), moments.value.cached];
    let both = SideMoments {
        cached: concatenate![Axis(1), left, right],
        weight: Some(weight.concat()),
        measured: true,
    };
    let Principal { down, up, spectrum } = principal(&both, rank)?;
    let parts = |first: usize, end: usize, size: usize| {
        let mut heads = Array3::zeros((kv_heads, size, rank));
        let rows = up.slice(s![first..end, ..]);
        let blocks = rows.axis_chunks_iter(Axis(0), size.max(1));
        for (mut head, block) in heads.outer_iter_mut().zip(blocks) {
            head.assign(&block);
        }
        heads
    };
    let side = |from: usize, to: usize, up: Array3<f64>| SideFactors {
        down: down.slice(s![.., from..to]).to_owned(),
        up,
        spectrum: Array1::default(0),
    };
    let groups = kv_heads.max(1);
    let made = JointFactors {
        key: side(0, ranks.key, parts(0, n, n / groups)),
        value: side(ranks.key, rank, parts(n, n + m, m / groups)),
        key_bias: None,
        bias: None,
        spectrum,
    };
    let Some((key, value)) = &moments.means else {
        return Ok(made);
    };
    // x is rebuilt as mean + (x - mean) W_d W_u.
    let mean = concatenate![Axis(0), key.view(), value.view()];
    let lost = &mean - &mean.dot(&down).dot(&up.t());
    Ok(made.adding(&lost, heads))
}

/// The error weight of one side, a block for each KV head, divided by the weighted second moment of its rows.
fn relative(side: &SideMoments, kv_heads: usize) -> Vec<Array2<f64>> {
    let size = side.cached.nrows() / kv_heads.max(1);
    let alike = || vec![Array2::eye(size); kv_heads];
    let weight = side.weight.clone().unwrap_or_else(alike);
    let sizes = weight.iter().enumerate().map(|(head, weight)| {
        let own = s![
            head * size..(head + 1) * size,
            head * size..(head + 1) * size
        ];
        (weight * &side.cached.slice(own)).sum()
    });
    let all: f64 = sizes.sum();
    let all = if all > 0.0 { all } else { 1.0 };
    weight.into_iter().map(|weight| weight / all).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moments of rows x = [k, v] with covariance `all` and mean `mean`, G = 1.
    fn moments(all: &Array2<f64>, mean: &Array1<f64>, n: usize) -> JointMoments {
        let side = |part: Array2<f64>| SideMoments {
            cached: part,
            weight: None,
            measured: true,
        };
        JointMoments {
            key: side(all.slice(s![..n, ..n]).to_owned()),
            value: side(all.slice(s![n.., n..]).to_owned()),
            cross: all.slice(s![..n, n..]).to_owned(),
            means: Some((
                mean.slice(s![..n]).to_owned(),
                mean.slice(s![n..]).to_owned(),
            )),
        }
    }

    /// What the latent keeps of the row x = [k, v].
    fn kept(factors: &JointFactors, x: &Array1<f64>) -> Array1<f64> {
        let latent: Array1<f64> = concatenate![
            Axis(0),
            x.dot(&factors.key.down),
            x.dot(&factors.value.down)
        ];
        let rows = |side: &SideFactors, bias: &Option<Array2<f64>>| -> Array1<f64> {
            let rows: Array1<f64> = side.up.index_axis(Axis(0), 0).dot(&latent);
            match bias {
                Some(bias) => rows + bias.row(0),
                None => rows,
            }
        };
        concatenate![
            Axis(0),
            rows(&factors.key, &factors.key_bias),
            rows(&factors.value, &factors.bias)
        ]
    }

    #[test]
    fn keys_and_values_of_one_state_take_no_more_numbers_than_the_state() {
        // Keys and values of four numbers each are maps of a state of four.
        let map = Array2::from_shape_fn((8, 4), |(i, j)| {
            ((i * 5 + j * 3) % 7) as f64 - 3.0 + 0.1 * j as f64
        });
        let mean = Array1::from_shape_fn(8, |i| 10.0 - i as f64);
        let moments = moments(&map.dot(&map.t()), &mean, 4);
        let factors = joint(&moments, (1, 1), Ranks::uniform(2)).unwrap();
        let x = mean + map.dot(&Array1::from_vec(vec![1.0, -2.0, 0.5, 3.0]));
        let lost = &kept(&factors, &x) - &x;
        assert!(lost.dot(&lost) < 1e-18 * x.dot(&x), "{lost}");
        assert!(factors.predicted_error() < 1e-12);
    }

    #[test]
    fn two_latents_are_parts_of_one_and_all_channels_are_exact() {
        let all = Array2::from_shape_fn((6, 6), |(i, j)| if i == j { 2.0 } else { 0.5 });
        let moments = moments(&all, &Array1::ones(6), 2);
        let ranks = Ranks { key: 2, value: 4 };
        let factors = joint(&moments, (1, 1), ranks).unwrap();
        let x = Array1::from_vec(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(kept(&factors, &x), x);
    }
}
