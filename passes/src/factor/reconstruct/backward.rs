//! The backward pass of one head.

use crate::factor::dense::{DenseView, product};
use crate::factor::reconstruct::forward::{Head, RankedAttention, columns};
use crate::factor::reconstruct::scored::{Scored, Slopes};
use crate::factor::reconstruct::weights::SingleFactors;

impl RankedAttention<'_> {
    /// Adds the gradients of `head`'s weights to `slope`, and those of the rows that it reads to `back`. `read` is the
    /// output error of a block of queries times W_O W_Oᵀ.
    #[allow(clippy::too_many_arguments)] // The backward pass needs all intermediate values of the forward pass.
    pub fn backward(
        &self,
        head: usize,
        made: &Head,
        read: &[f32],
        count: usize,
        weights: &SingleFactors,
        (scored, values): (&Scored, DenseView),
        slope: &mut SingleFactors,
        back: &mut Slopes,
    ) {
        let (d, dv) = (self.is.key_size, self.is.value_size);
        let (rk, rv) = (self.key_rank, self.value_rank);
        let group = self.is.group(head);
        let seen = made.p.len() / count.max(1);
        let (scale, value_scale) = (self.is.scale as f32, self.is.value_scale as f32);
        // The loss is e G eᵀ, so its gradient with respect to e is 2 e G.
        let width = self.is.heads * dv;
        let mut d_out = columns(read, width, head * dv, dv);
        d_out.iter_mut().for_each(|x| *x *= 2.0);
        let d_out = DenseView::new(&d_out, count, dv);
        if let Some(bias) = slope.bias.get_mut(head * dv..(head + 1) * dv) {
            for row in columns(read, width, head * dv, dv).chunks(dv.max(1)) {
                let slopes = bias.iter_mut().zip(row);
                slopes.for_each(|(b, x)| *b += 2.0 * value_scale * x);
            }
        }
        let empty = Vec::new();
        let up_value = weights.w_uv.get(group).unwrap_or(&empty);
        let mixed = DenseView::new(&made.mixed, count, rv);
        if let Some(slope) = slope.w_uv.get_mut(group) {
            product(slope, true, mixed.t(), d_out, 1.0);
        }
        let mut d_mixed = Vec::new();
        product(
            &mut d_mixed,
            false,
            d_out,
            DenseView::new(up_value, rv, dv).t(),
            1.0,
        );
        let d_mixed = DenseView::new(&d_mixed, count, rv);
        let p = DenseView::new(&made.p, count, seen);
        add_rows(&mut back.values, p.t(), d_mixed, seen, rv, value_scale);
        let mut d_score = Vec::new();
        product(&mut d_score, false, d_mixed, values.t(), value_scale);
        for (slopes, row) in d_score
            .chunks_mut(seen.max(1))
            .zip(made.p.chunks(seen.max(1)))
        {
            let mean: f32 = slopes.iter().zip(row).map(|(s, p)| s * p).sum();
            slopes
                .iter_mut()
                .zip(row)
                .for_each(|(s, p)| *s = p * (*s - mean));
        }
        if self.is.softcap.is_some() {
            d_score
                .iter_mut()
                .zip(&made.bent)
                .for_each(|(s, b)| *s *= b);
        }
        let d_score = DenseView::new(&d_score, count, seen);
        let queries = DenseView::new(&made.queries, count, d);
        let latents = match scored {
            Scored::Heads { .. } => {
                if let Some(keys) = back.scored.get_mut(group) {
                    add_rows(keys, d_score.t(), queries, seen, d, scale);
                }
                return;
            }
            Scored::Latents(latents) => latents,
        };
        if let Some(keys) = back.scored.first_mut() {
            let latent_queries = DenseView::new(&made.latent_queries, count, rk);
            add_rows(keys, d_score.t(), latent_queries, seen, rk, scale);
        }
        let mut d_queries = Vec::new();
        let latents = DenseView::new(latents, seen, rk);
        product(&mut d_queries, false, d_score, latents, scale);
        if let Some(slope) = slope.w_uk.get_mut(group) {
            let d_queries = DenseView::new(&d_queries, count, rk);
            product(slope, true, queries.t(), d_queries, 1.0);
        }
    }
}

/// Adds `a b` to the first `count` rows of `out`, `width` wide.
fn add_rows(
    out: &mut Vec<f32>,
    a: DenseView,
    b: DenseView,
    count: usize,
    width: usize,
    alpha: f32,
) {
    let mut rows = Vec::new();
    product(&mut rows, false, a, b, alpha);
    out.resize(out.len().max(count * width), 0.0);
    out.iter_mut().zip(rows).for_each(|(x, y)| *x += y);
}
