//! One attention without its factors, and its input sequences.

use ndarray::Array2;

use crate::factor::reconstruct::rotary::Rotary;
use crate::factor::rope::Rope;

/// The queries, keys and values of one attention on a sequence of text.
#[derive(Debug, Clone, Default)]
pub struct Sequence {
    /// T.
    pub length: usize,
    /// Queries [H, T, d].
    pub queries: Vec<f32>,
    /// Keys [T, G*d] from which latents are computed: rotated, or unrotated if `Attention::rotary` is set.
    pub keys: Vec<f32>,
    /// Values [T, G*dv].
    pub values: Vec<f32>,
}

/// The parameters of an attention other than its factors.
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
    /// Factor of `q · k`: the product of all constant scales.
    pub scale: f64,
    /// Constant factor of the values.
    pub value_scale: f64,
    /// Softcap: bound of the scores by tanh.
    pub softcap: Option<f64>,
    /// Sliding window: number of visible positions, the query's own included; `None`: all up to the query.
    pub window: Option<usize>,
    /// The rotation of keys that are rebuilt from the latent; `None` if the latent is that of rotated keys.
    pub rotary: Option<Rotary>,
    /// The RoPE of the recorded queries and keys, with which a sequence can be moved to later positions; `None` if
    /// unknown.
    pub rope: Option<Rope>,
    /// W_O W_Oᵀ [H*dv, H*dv], the weight of output errors; `None`: the identity.
    pub readers: Option<Array2<f64>>,
}

impl Attention {
    /// The index of the KV head that query head `head` reads.
    #[must_use]
    pub fn group(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads.max(1)).max(1)
    }

    /// The largest offset by which a sequence of `length` tokens can be moved within the first `positions`. It is 0 if
    /// keys are rotated after the latent, whose loss then does not depend on the position, or if the RoPE is unknown.
    #[must_use]
    pub fn room(&self, length: usize, positions: usize) -> usize {
        match &self.rope {
            Some(_) if self.rotary.is_none() => positions.saturating_sub(length),
            _ => 0,
        }
    }

    /// `sequence` moved by `offset` positions: queries and keys are rotated by the same angle, so that the scores stay
    /// the same, `(R_p q) . (R_p k) = q . k`, while the loss of the latent changes.
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
