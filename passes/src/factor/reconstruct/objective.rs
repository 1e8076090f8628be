//! What the descent minimises: the error of one attention's outputs as o_proj reads them, and its gradient.

use crate::factor::Factors;
use crate::factor::reconstruct::attention::{Attention, Sequence};
use crate::factor::reconstruct::forward::Layer;
use crate::factor::reconstruct::weights::Weights;

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

    /// The same `offset` positions later, where the attention gives the same outputs.
    #[must_use]
    pub fn moved(&self, attention: &Attention, offset: usize) -> Self {
        Self {
            sequence: attention.moved(&self.sequence, offset),
            target: self.target.clone(),
        }
    }
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
