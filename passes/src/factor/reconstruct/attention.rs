//! One attention apart from its factors, and what it reads.

use ndarray::Array2;

use crate::factor::reconstruct::rotary::Rotary;
use crate::factor::rope::Rope;

/// What one attention read and made of a stretch of text.
#[derive(Debug, Clone, Default)]
pub struct Sequence {
    /// T.
    pub length: usize,
    /// Queries [H, T, d].
    pub queries: Vec<f32>,
    /// Keys [T, G*d] as latents are made of them: rotated, or before rotation where the attention rotates them.
    pub keys: Vec<f32>,
    /// Values [T, G*dv].
    pub values: Vec<f32>,
}

/// The attention, apart from its factors.
#[derive(Debug, Clone)]
pub struct Attention {
    /// H.
    pub heads: usize,
    /// G.
    pub kv_heads: usize,
    /// d.
    pub key_size: usize,
    /// dv.
    pub value_size: usize,
    /// Factor of `q · k`, everything included.
    pub scale: f64,
    /// Factor of the values.
    pub value_scale: f64,
    /// Bound of the scores by tanh.
    pub softcap: Option<f64>,
    /// A query sees this many positions, itself included; `None` sees all before it.
    pub window: Option<usize>,
    /// What rotates keys after their latent; `None` where the latent is that of keys as they are scored.
    pub rotary: Option<Rotary>,
    /// How queries and keys were rotated before a sequence was recorded, by which it can be moved to later positions;
    /// `None` where that is not known.
    pub rope: Option<Rope>,
    /// W_O W_Oᵀ [H*dv, H*dv], or nothing where all directions count alike.
    pub readers: Option<Array2<f64>>,
}

impl Attention {
    /// j, the KV head that query head `head` reads.
    #[must_use]
    pub fn group(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads.max(1)).max(1)
    }

    /// How far a sequence of `length` tokens can be moved among the first `positions`: nowhere where keys are rotated after
    /// their latent, which then loses the same at every position, or where their rotation is not known.
    #[must_use]
    pub fn room(&self, length: usize, positions: usize) -> usize {
        match &self.rope {
            Some(_) if self.rotary.is_none() => positions.saturating_sub(length),
            _ => 0,
        }
    }

    /// `sequence` as it would have been `offset` positions later: queries and keys are rotated alike, so that the scores
    /// stay, `(R_p q) . (R_p k) = q . k`, and what the latent keeps of them does not.
    #[must_use]
    pub fn moved(&self, sequence: &Sequence, offset: usize) -> Sequence {
        let mut moved = sequence.clone();
        if let Some(rope) = self.rope.as_ref().filter(|_| offset > 0) {
            let position = |_| offset as f64;
            rope.rotate(&mut moved.queries, self.key_size, &position);
            rope.rotate(&mut moved.keys, self.kv_heads * self.key_size, &position);
        }
        moved
    }
}
