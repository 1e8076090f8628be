//! One attention and what it reads, with what can be asked of it: outputs, error and gradient.

use ndarray::Array2;

use crate::factor::Factors;
use crate::factor::reconstruct::layer::Layer;
use crate::factor::reconstruct::rotary::Rotary;
use crate::factor::reconstruct::weights::Weights;

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

/// What an attention reads, and what it has to make of it.
#[derive(Debug, Clone)]
pub struct Example {
    /// What it reads.
    pub sequence: Sequence,
    /// The outputs [T, H*dv] that it should give.
    pub target: Vec<f32>,
}

impl Example {
    /// The attention should make what it makes without any factors.
    pub fn of(attention: &Attention, sequence: Sequence) -> Self {
        let target = outputs(attention, &sequence);
        Self { sequence, target }
    }
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
    /// W_O W_Oᵀ [H*dv, H*dv], or nothing where all directions count alike.
    pub readers: Option<Array2<f64>>,
}

/// The attention's outputs [T, H*dv] on `sequence`, without any factors.
pub fn outputs(attention: &Attention, sequence: &Sequence) -> Vec<f32> {
    Layer::whole(attention).target(sequence)
}

/// Relative squared error of the attention's output, as o_proj reads it, over `examples`; all queries count.
pub fn error(attention: &Attention, factors: &Factors, examples: &[Example]) -> f64 {
    let layer = Layer::new(attention, factors);
    let weights = Weights::of(factors, attention);
    let (mut lost, mut whole) = (0.0, 0.0);
    for Example { sequence, target } in examples {
        let queries: Vec<usize> = (0..sequence.length).collect();
        lost += layer.step(sequence, target, &queries, &weights, None);
        whole += layer.energy(target, sequence.length);
    }
    if whole > 0.0 { lost / whole } else { 0.0 }
}

/// The gradient of the squared error on the queries `queries` of `sequence`, in the order of [`Factors`]: w_dk, w_uk,
/// w_dv, w_uv as [G, dv, r], bias. For checks against finite differences.
pub fn gradient(
    attention: &Attention,
    factors: &Factors,
    sequence: &Sequence,
    queries: &[usize],
) -> (f64, Factors) {
    let layer = Layer::new(attention, factors);
    let weights = Weights::of(factors, attention);
    let mut gradient = weights.zeros();
    let target = layer.target(sequence);
    let loss = layer.step(sequence, &target, queries, &weights, Some(&mut gradient));
    (loss, gradient.factors(attention, factors))
}
