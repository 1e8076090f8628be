//! One step on some queries of a sequence: forward pass, error, and backward pass if the gradient is wanted.

use crate::factor::dense::{DenseView, product};
use crate::factor::reconstruct::attention::Sequence;
use crate::factor::reconstruct::forward::{BLOCK, Head, RankedAttention, dot};
use crate::factor::reconstruct::scored::{Scored, Slopes};
use crate::factor::reconstruct::weights::SingleFactors;

impl RankedAttention<'_> {
    /// The squared error of the outputs at `queries`; adds its gradient to `slope`.
    pub fn step(
        &self,
        sequence: &Sequence,
        target: &[f32],
        queries: &[usize],
        weights: &SingleFactors,
        mut slope: Option<&mut SingleFactors>,
    ) -> f64 {
        let (n, m) = (
            self.is.kv_heads * self.is.key_size,
            self.is.kv_heads * self.is.value_size,
        );
        let (rk, rv) = (self.key_rank, self.value_rank);
        let seen = queries.last().map_or(0, |last| last + 1);
        let keys = DenseView::new(&sequence.keys, seen, n);
        let values = DenseView::new(&sequence.values, seen, m);
        let (mut latent_keys, mut latent_values) = (Vec::new(), Vec::new());
        product(
            &mut latent_keys,
            false,
            keys,
            DenseView::new(&weights.w_dk, n, rk),
            1.0,
        );
        product(
            &mut latent_values,
            false,
            values,
            DenseView::new(&weights.w_dv, m, rv),
            1.0,
        );
        let scored = Scored::of(self.is, latent_keys, rk, weights);
        let mut back = Slopes::zeros(&scored, latent_values.len());
        let mut lost = 0.0;
        for block in queries.chunks(BLOCK) {
            let seen = block.last().map_or(0, |last| last + 1);
            let latent_values = DenseView::new(&latent_values, seen, rv);
            let made: Vec<Head> = (0..self.is.heads)
                .map(|head| self.forward(sequence, block, head, weights, &scored, latent_values))
                .collect();
            let difference = self.difference(&made, target, block, weights);
            let read = self.read(&difference, block.len());
            lost += dot(&difference, &read);
            if let Some(slope) = slope.as_deref_mut() {
                for (head, made) in made.iter().enumerate() {
                    self.backward(
                        head,
                        made,
                        &read,
                        block.len(),
                        weights,
                        (&scored, latent_values),
                        slope,
                        &mut back,
                    );
                }
            }
        }
        if let Some(slope) = slope {
            let back = scored.to_latents(self.is, back, rk, weights, slope);
            product(
                &mut slope.w_dk,
                true,
                keys.t(),
                DenseView::new(&back.keys, seen, rk),
                1.0,
            );
            product(
                &mut slope.w_dv,
                true,
                values.t(),
                DenseView::new(&back.values, seen, rv),
                1.0,
            );
        }
        lost
    }
}
