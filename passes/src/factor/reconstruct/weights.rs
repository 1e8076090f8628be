//! The factors of one attention in single precision, in the layout of the products.

use ndarray::{Array2, Array3};

use crate::factor::Factors;
use crate::factor::reconstruct::attention::Attention;
use crate::factor::weighted::SideFactors;

/// The factors of one attention, in single precision.
#[derive(Debug, Clone, Default)]
pub struct SingleFactors {
    /// [G*d, r].
    pub w_dk: Vec<f32>,
    /// [G, d, r].
    pub w_uk: Vec<Vec<f32>>,
    /// [G*dv, r].
    pub w_dv: Vec<f32>,
    /// [G, r, dv].
    pub w_uv: Vec<Vec<f32>>,
    /// [H, dv], before the constant factor of the values.
    pub bias: Vec<f32>,
}

impl SingleFactors {
    pub fn of(factors: &Factors, attention: &Attention) -> Self {
        let up = |side: &SideFactors| -> Vec<Array2<f64>> {
            side.up.outer_iter().map(|block| block.to_owned()).collect()
        };
        Self {
            w_dk: single(&factors.key.down),
            w_uk: up(&factors.key).iter().map(single).collect(),
            w_dv: single(&factors.value.down),
            w_uv: up(&factors.value)
                .iter()
                .map(|block| single(&block.t().as_standard_layout().to_owned()))
                .collect(),
            bias: match &factors.bias {
                Some(bias) => single(bias),
                None => vec![0.0; attention.heads * attention.value_size],
            },
        }
    }

    pub fn zeros(&self) -> Self {
        let zeros = |x: &Vec<f32>| vec![0.0; x.len()];
        Self {
            w_dk: zeros(&self.w_dk),
            w_uk: self.w_uk.iter().map(zeros).collect(),
            w_dv: zeros(&self.w_dv),
            w_uv: self.w_uv.iter().map(zeros).collect(),
            bias: zeros(&self.bias),
        }
    }

    /// The same numbers as [`Factors`] with the shapes of `like`.
    pub fn factors(&self, attention: &Attention, like: &Factors) -> Factors {
        let matrix = |data: &[f32], rows: usize, columns: usize| {
            Array2::from_shape_fn((rows, columns), |(i, j)| {
                data.get(i * columns + j).copied().map_or(0.0, f64::from)
            })
        };
        let (rk, rv) = (like.key.down.ncols(), like.value.down.ncols());
        let blocks = |parts: &[Vec<f32>], size: usize, rank: usize, turned: bool| {
            Array3::from_shape_fn((parts.len(), size, rank), |(g, i, j)| {
                let at = if turned { j * size + i } else { i * rank + j };
                parts
                    .get(g)
                    .and_then(|p| p.get(at))
                    .copied()
                    .map_or(0.0, f64::from)
            })
        };
        let (heads, dv) = (attention.heads, attention.value_size);
        Factors {
            key: SideFactors {
                down: matrix(&self.w_dk, like.key.down.nrows(), rk),
                up: blocks(&self.w_uk, attention.key_size, rk, false),
                spectrum: like.key.spectrum.clone(),
            },
            value: SideFactors {
                down: matrix(&self.w_dv, like.value.down.nrows(), rv),
                up: blocks(&self.w_uv, dv, rv, true),
                spectrum: like.value.spectrum.clone(),
            },
            bias: Some(matrix(&self.bias, heads, dv)),
        }
    }
}

pub fn single(matrix: &Array2<f64>) -> Vec<f32> {
    matrix.iter().map(|&x| x as f32).collect()
}
