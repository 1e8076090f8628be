//! The right operand of the score product, computed from the latents, and its backward pass.

use crate::factor::dense::{DenseView, product};
use crate::factor::reconstruct::attention::Attention;
use crate::factor::reconstruct::weights::SingleFactors;

/// The right operand of the score product.
pub enum Scored {
    /// Latents [T, r]; queries are mapped to latent coordinates.
    Latents(Vec<f32>),
    /// Keys that are rebuilt from the latents and rotated.
    Heads {
        /// Keys of each KV head, G times [T, d].
        heads: Vec<Vec<f32>>,
        /// The latents [T, r].
        latents: Vec<f32>,
    },
}

impl Scored {
    /// The operand for `latents` [T, r]: rebuilt and rotated keys if the attention has a `rotary`, else the latents.
    pub fn of(
        attention: &Attention,
        latents: Vec<f32>,
        rank: usize,
        weights: &SingleFactors,
    ) -> Self {
        let d = attention.key_size;
        let Some(rotary) = &attention.rotary else {
            return Self::Latents(latents);
        };
        let seen = latents.len() / rank.max(1);
        let rebuilt = weights.w_uk.iter().map(|up| {
            let mut rows = Vec::new();
            let latents = DenseView::new(&latents, seen, rank);
            product(
                &mut rows,
                false,
                latents,
                DenseView::new(up, d, rank).t(),
                1.0,
            );
            rotary.rotate(&mut rows, d);
            rows
        });
        Self::Heads {
            heads: rebuilt.collect(),
            latents,
        }
    }

    /// Maps the gradients `back` to gradients of the latents. For rebuilt keys, adds the gradient of w_uk to `slope`.
    pub fn to_latents(
        &self,
        attention: &Attention,
        back: Slopes,
        rank: usize,
        weights: &SingleFactors,
        slope: &mut SingleFactors,
    ) -> Latents {
        let Slopes { scored: by, values } = back;
        let (Self::Heads { latents, .. }, Some(rotary)) = (self, &attention.rotary) else {
            let keys = by.into_iter().next().unwrap_or_default();
            return Latents { keys, values };
        };
        let d = attention.key_size;
        let mut keys = vec![0.0; latents.len()];
        let count = latents.len() / rank.max(1);
        let ups = weights.w_uk.iter().zip(&mut slope.w_uk);
        for (mut rows, (up, slope)) in by.into_iter().zip(ups) {
            rotary.rotate_back(&mut rows, d);
            let rows = DenseView::new(&rows, count, d);
            product(
                slope,
                true,
                rows.t(),
                DenseView::new(latents, count, rank),
                1.0,
            );
            product(&mut keys, true, rows, DenseView::new(up, d, rank), 1.0);
        }
        Latents { keys, values }
    }
}

/// Gradients accumulated over heads.
pub struct Slopes {
    /// Gradients of the right operand of the score product, [T, width] each: the latents, or the keys of each KV head.
    pub scored: Vec<Vec<f32>>,
    /// Gradients of the latent values, [T, r].
    pub values: Vec<f32>,
}

impl Slopes {
    /// Zero gradients.
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

/// Gradients of the latents, [T, r].
pub struct Latents {
    /// Gradient of the latents of the keys.
    pub keys: Vec<f32>,
    /// Gradient of the latents of the values.
    pub values: Vec<f32>,
}
