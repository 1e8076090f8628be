//! What queries are multiplied with, made of the latents and led back to them.

use crate::factor::dense::{View, product};
use crate::factor::reconstruct::layer::Layer;
use crate::factor::reconstruct::weights::Weights;

/// What queries are multiplied with.
pub enum Scored {
    /// Latents [T, r], by queries in their coordinates.
    Latents(Vec<f32>),
    /// Rebuilt and rotated keys of each head.
    Heads {
        /// [G][T, d].
        heads: Vec<Vec<f32>>,
        /// What they are rebuilt from, [T, r].
        latents: Vec<f32>,
    },
}

impl Layer<'_> {
    /// What queries are multiplied with: the latents themselves, or the heads that are rebuilt from them and rotated.
    pub fn scored(&self, latents: Vec<f32>, seen: usize, weights: &Weights) -> Scored {
        let (d, rk) = (self.is.key_size, self.key_rank);
        let Some(rotary) = &self.is.rotary else {
            return Scored::Latents(latents);
        };
        let rebuilt = weights.w_uk.iter().map(|up| {
            let mut rows = Vec::new();
            let latents = View::new(&latents, seen, rk);
            product(&mut rows, false, latents, View::new(up, d, rk).t(), 1.0);
            rotary.rotate(&mut rows, d);
            rows
        });
        Scored::Heads {
            heads: rebuilt.collect(),
            latents,
        }
    }

    /// From what queries were multiplied with back to the latents; rebuilt keys leave their slope at w_uk.
    pub fn to_latents(
        &self,
        back: Slopes,
        scored: &Scored,
        weights: &Weights,
        slope: &mut Weights,
    ) -> Latents {
        let Slopes { scored: by, values } = back;
        let (Scored::Heads { latents, .. }, Some(rotary)) = (scored, &self.is.rotary) else {
            let keys = by.into_iter().next().unwrap_or_default();
            return Latents { keys, values };
        };
        let (d, rk) = (self.is.key_size, self.key_rank);
        let mut keys = vec![0.0; latents.len()];
        let count = latents.len() / rk.max(1);
        let ups = weights.w_uk.iter().zip(&mut slope.w_uk);
        for (mut rows, (up, slope)) in by.into_iter().zip(ups) {
            rotary.rotate_back(&mut rows, d);
            let rows = View::new(&rows, count, d);
            product(slope, true, rows.t(), View::new(latents, count, rk), 1.0);
            product(&mut keys, true, rows, View::new(up, d, rk), 1.0);
        }
        Latents { keys, values }
    }
}

/// Slopes while heads are gone through.
pub struct Slopes {
    /// Of the rows that queries are multiplied with, [T, width] each: the latents, or the keys of each KV head.
    pub scored: Vec<Vec<f32>>,
    /// Of the latent values, [T, r].
    pub values: Vec<f32>,
}

impl Slopes {
    /// None yet.
    pub fn zeros(scored: &Scored, values: usize) -> Self {
        let zeros = |rows: &Vec<f32>| vec![0.0; rows.len()];
        Self {
            scored: match scored {
                Scored::Latents(latents) => vec![zeros(latents)],
                Scored::Heads { heads, .. } => heads.iter().map(zeros).collect(),
            },
            values: vec![0.0; values],
        }
    }
}

/// Slopes of the latent rows, [T, r].
pub struct Latents {
    /// Of the keys.
    pub keys: Vec<f32>,
    /// Of the values.
    pub values: Vec<f32>,
}
