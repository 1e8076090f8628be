//! The objective of the descent: the error of one attention's outputs after o_proj, and its gradient.

use crate::factor::Factors;
use crate::factor::reconstruct::attention::{Attention, Sequence};
use crate::factor::reconstruct::forward::RankedAttention;
use crate::factor::reconstruct::weights::SingleFactors;

/// A training example: a sequence and the target outputs.
#[derive(Debug, Clone)]
pub struct Example {
    /// The recorded queries, keys and values.
    pub sequence: Sequence,
    /// The target outputs [T, H*dv].
    pub target: Vec<f32>,
}

impl Example {
    /// The example whose target is the output of the original attention.
    pub fn of(attention: &Attention, sequence: Sequence) -> Self {
        let target = outputs(attention, &sequence);
        Self { sequence, target }
    }

    /// The same example `offset` positions later; the target does not change.
    #[must_use]
    pub fn moved(&self, attention: &Attention, offset: usize) -> Self {
        Self {
            sequence: attention.moved(&self.sequence, offset),
            target: self.target.clone(),
        }
    }
}

/// The outputs [T, H*dv] of the original attention on `sequence`.
pub fn outputs(attention: &Attention, sequence: &Sequence) -> Vec<f32> {
    RankedAttention::whole(attention).target(sequence)
}

/// Relative squared error of the attention's output after o_proj, over all queries of `examples`.
pub fn error(attention: &Attention, factors: &Factors, examples: &[Example]) -> f64 {
    let layer = RankedAttention::new(attention, factors);
    let weights = SingleFactors::of(factors, attention);
    let (mut lost, mut whole) = (0.0, 0.0);
    for Example { sequence, target } in examples {
        let queries: Vec<usize> = (0..sequence.length).collect();
        lost += layer.step(sequence, target, &queries, &weights, None);
        whole += layer.energy(target, sequence.length);
    }
    if whole > 0.0 { lost / whole } else { 0.0 }
}

/// The squared error on the queries `queries` of `sequence`, and its gradient with respect to each factor. For tests
/// against finite differences.
pub fn gradient(
    attention: &Attention,
    factors: &Factors,
    sequence: &Sequence,
    queries: &[usize],
) -> (f64, Factors) {
    let layer = RankedAttention::new(attention, factors);
    let weights = SingleFactors::of(factors, attention);
    let mut gradient = weights.zeros();
    let target = layer.target(sequence);
    let loss = layer.step(sequence, &target, queries, &weights, Some(&mut gradient));
    (loss, gradient.factors(attention, factors))
}
