//! The forward pass of one attention: scores, probabilities, outputs, and their difference from the target.

use crate::factor::Factors;
use crate::factor::dense::{DenseView, product};
use crate::factor::reconstruct::attention::{Attention, Sequence};
use crate::factor::reconstruct::scored::Scored;
use crate::factor::reconstruct::weights::{SingleFactors, single};

/// Number of queries per block. Only the keys up to the last query of a block are multiplied.
pub const BLOCK: usize = 64;

/// One attention with its ranks.
pub struct RankedAttention<'a> {
    /// The attention.
    pub is: &'a Attention,
    /// Rank of the keys.
    pub key_rank: usize,
    /// Rank of the values.
    pub value_rank: usize,
    /// W_O W_Oᵀ in single precision.
    readers: Option<Vec<f32>>,
}

impl<'a> RankedAttention<'a> {
    /// The original attention, without factors.
    pub fn whole(attention: &'a Attention) -> Self {
        Self {
            is: attention,
            key_rank: 0,
            value_rank: 0,
            readers: None,
        }
    }

    pub fn new(attention: &'a Attention, factors: &Factors) -> Self {
        Self {
            is: attention,
            key_rank: factors.key.down.ncols(),
            value_rank: factors.value.down.ncols(),
            readers: attention.readers.as_ref().map(single),
        }
    }

    /// The outputs [T, H*dv] of the original attention.
    pub fn target(&self, sequence: &Sequence) -> Vec<f32> {
        let (heads, d, dv) = (self.is.heads, self.is.key_size, self.is.value_size);
        let all: Vec<usize> = (0..sequence.length).collect();
        let mut target = vec![0.0; sequence.length * heads * dv];
        let (mut scores, mut out) = (Vec::new(), Vec::new());
        for head in 0..heads {
            let group = self.is.group(head);
            let mut keys = columns(&sequence.keys, self.is.kv_heads * d, group * d, d);
            if let Some(rotary) = &self.is.rotary {
                rotary.rotate(&mut keys, d);
            }
            let values = columns(&sequence.values, self.is.kv_heads * dv, group * dv, dv);
            for block in all.chunks(BLOCK) {
                let seen = block.last().map_or(0, |last| last + 1);
                let queries = rows(&sequence.queries, head * sequence.length, block, d);
                product(
                    &mut scores,
                    false,
                    DenseView::new(&queries, block.len(), d),
                    DenseView::new(&keys, seen, d).t(),
                    self.is.scale as f32,
                );
                self.probabilities(&mut scores, block, seen, None);
                product(
                    &mut out,
                    false,
                    DenseView::new(&scores, block.len(), seen),
                    DenseView::new(&values, seen, dv),
                    self.is.value_scale as f32,
                );
                for (&row, made) in block.iter().zip(out.chunks(dv)) {
                    let at = (row * heads + head) * dv;
                    if let Some(place) = target.get_mut(at..at + dv) {
                        place.copy_from_slice(made);
                    }
                }
            }
        }
        target
    }

    /// Squared norm of `outputs` [count, H*dv] after o_proj.
    pub fn energy(&self, outputs: &[f32], count: usize) -> f64 {
        let read = self.read(outputs, count);
        dot(outputs, &read)
    }

    /// `outputs` times W_O W_Oᵀ.
    pub fn read(&self, outputs: &[f32], count: usize) -> Vec<f32> {
        let width = self.is.heads * self.is.value_size;
        match &self.readers {
            None => outputs.to_vec(),
            Some(readers) => {
                let mut read = Vec::new();
                product(
                    &mut read,
                    false,
                    DenseView::new(outputs, count, width),
                    DenseView::new(readers, width, width),
                    1.0,
                );
                read
            }
        }
    }

    /// Turns the scores of `queries` against the first `seen` positions into probabilities, in place. `bent` receives
    /// the derivative of the softcap.
    fn probabilities(
        &self,
        scores: &mut [f32],
        queries: &[usize],
        seen: usize,
        mut bent: Option<&mut Vec<f32>>,
    ) {
        if let Some(bent) = bent.as_deref_mut() {
            bent.clear();
        }
        if let Some(cap) = self.is.softcap {
            let cap = cap as f32;
            for score in scores.iter_mut() {
                let bounded = (*score / cap).tanh();
                *score = cap * bounded;
                if let Some(bent) = bent.as_deref_mut() {
                    bent.push(1.0 - bounded * bounded);
                }
            }
        }
        for (&query, row) in queries.iter().zip(scores.chunks_mut(seen.max(1))) {
            let first = self
                .is
                .window
                .map_or(0, |window| (query + 1).saturating_sub(window));
            let end = (query + 1).min(seen);
            let mut largest = f32::NEG_INFINITY;
            for score in row.get(first..end).unwrap_or_default() {
                largest = largest.max(*score);
            }
            let mut sum = 0.0f32;
            for (position, score) in row.iter_mut().enumerate() {
                *score = if position >= first && position < end {
                    (*score - largest).exp()
                } else {
                    0.0
                };
                sum += *score;
            }
            let share = if sum > 0.0 { 1.0 / sum } else { 0.0 };
            row.iter_mut().for_each(|p| *p *= share);
        }
    }

    /// The forward pass of `head` for the queries `block` of `sequence`, with the operand `scored` of the score product
    /// and the latent `values` [seen, r].
    pub fn forward(
        &self,
        sequence: &Sequence,
        block: &[usize],
        head: usize,
        weights: &SingleFactors,
        scored: &Scored,
        values: DenseView,
    ) -> Head {
        let (d, dv) = (self.is.key_size, self.is.value_size);
        let (rk, rv) = (self.key_rank, self.value_rank);
        let group = self.is.group(head);
        let seen = block.last().map_or(0, |last| last + 1);
        let empty = Vec::new();
        let (up_key, up_value) = (
            weights.w_uk.get(group).unwrap_or(&empty),
            weights.w_uv.get(group).unwrap_or(&empty),
        );
        let mut made = Head {
            queries: rows(&sequence.queries, head * sequence.length, block, d),
            ..Head::default()
        };
        let (queries, keys) = match scored {
            Scored::Latents(latents) => {
                product(
                    &mut made.latent_queries,
                    false,
                    DenseView::new(&made.queries, block.len(), d),
                    DenseView::new(up_key, d, rk),
                    1.0,
                );
                let queries = DenseView::new(&made.latent_queries, block.len(), rk);
                (queries, DenseView::new(latents, seen, rk))
            }
            Scored::Heads { heads, .. } => {
                let keys = heads.get(group).unwrap_or(&empty);
                let queries = DenseView::new(&made.queries, block.len(), d);
                (queries, DenseView::new(keys, seen, d))
            }
        };
        product(&mut made.p, false, queries, keys.t(), self.is.scale as f32);
        self.probabilities(&mut made.p, block, seen, Some(&mut made.bent));
        product(
            &mut made.mixed,
            false,
            DenseView::new(&made.p, block.len(), seen),
            values,
            self.is.value_scale as f32,
        );
        product(
            &mut made.out,
            false,
            DenseView::new(&made.mixed, block.len(), rv),
            DenseView::new(up_value, rv, dv),
            1.0,
        );
        made
    }

    /// Outputs minus target, [block, H*dv].
    pub fn difference(
        &self,
        made: &[Head],
        target: &[f32],
        block: &[usize],
        weights: &SingleFactors,
    ) -> Vec<f32> {
        let (heads, dv) = (self.is.heads, self.is.value_size);
        let width = heads * dv;
        let value_scale = self.is.value_scale as f32;
        let mut difference = vec![0.0; block.len() * width];
        for (row, (place, &query)) in difference.chunks_mut(width.max(1)).zip(block).enumerate() {
            let wanted = target
                .get(query * width..(query + 1) * width)
                .unwrap_or_default();
            for (head, place) in place.chunks_mut(dv.max(1)).enumerate() {
                let out = made
                    .get(head)
                    .and_then(|m| m.out.get(row * dv..(row + 1) * dv))
                    .unwrap_or_default();
                let bias = weights
                    .bias
                    .get(head * dv..(head + 1) * dv)
                    .unwrap_or_default();
                let wanted = wanted.get(head * dv..(head + 1) * dv).unwrap_or_default();
                for (((x, o), b), t) in place.iter_mut().zip(out).zip(bias).zip(wanted) {
                    *x = o + value_scale * b - t;
                }
            }
        }
        difference
    }
}

/// The intermediate values of one head for a block of queries.
#[derive(Default)]
pub struct Head {
    /// Queries [block, d].
    pub queries: Vec<f32>,
    /// Queries in latent coordinates [block, r]; empty if keys are rebuilt.
    pub latent_queries: Vec<f32>,
    /// Probabilities [block, seen].
    pub p: Vec<f32>,
    /// Derivative of the softcap, [block, seen]; empty without softcap.
    pub bent: Vec<f32>,
    /// `p c_v`, [block, r].
    pub mixed: Vec<f32>,
    /// Outputs [block, dv].
    pub out: Vec<f32>,
}

/// The rows `at`, counted from row `first`, of a matrix that is `width` wide.
fn rows(data: &[f32], first: usize, at: &[usize], width: usize) -> Vec<f32> {
    let mut picked = Vec::with_capacity(at.len() * width);
    for row in at {
        let start = (first + row) * width;
        picked.extend_from_slice(data.get(start..start + width).unwrap_or_default());
    }
    picked
}

/// The columns `first..first + count` of a matrix that is `width` wide.
pub fn columns(data: &[f32], width: usize, first: usize, count: usize) -> Vec<f32> {
    let mut picked = Vec::with_capacity(data.len() / width.max(1) * count);
    for row in data.chunks(width.max(1)) {
        picked.extend_from_slice(row.get(first..first + count).unwrap_or_default());
    }
    picked
}

/// The dot product, in double precision.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(x, y)| f64::from(*x) * f64::from(*y))
        .sum()
}
