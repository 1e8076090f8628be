//! Sequences at other positions than they were read at: the attention gives the same, the latents do not, and a descent over
//! all positions serves all of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod common;

use common::attention::{LENGTH, SIZE, attention, examples, halves, sequence, start};
use gqa2mla_passes::factor::reconstruct::{
    Attention, Descent, Example, error, outputs, reconstruct,
};
use gqa2mla_passes::factor::rope::Rope;

/// The attention with its keys rotated slowly in halves, as text read from position 0 shows them.
fn rotated_before() -> Attention {
    let frequencies = vec![0.3, 0.01, 0.002];
    Attention {
        rope: Rope::new(SIZE, halves(SIZE), frequencies),
        ..attention()
    }
}

#[test]
fn a_sequence_at_another_position_has_the_same_outputs_and_another_error() {
    let attention = rotated_before();
    let (_, factors) = start(5);
    let example = Example::of(&attention, sequence(11));
    let moved = example.moved(&attention, 700);
    for (a, b) in outputs(&attention, &moved.sequence)
        .iter()
        .zip(&example.target)
    {
        // Scores of a few units, from products in single precision.
        assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{a}, expected {b}");
    }
    let [here, there] = [example, moved].map(|e| error(&attention, &factors, &[e]));
    // Single precision leaves 1e-5 of it.
    assert!((here - there).abs() > 1e-3 * here, "{here} and {there}");
}

#[test]
fn descent_over_positions_loses_less_far_from_the_text_than_descent_on_it() {
    let attention = rotated_before();
    let (moments, start) = start(5);
    let examples = examples(&attention, 20..28);
    let far = [
        examples[7].moved(&attention, 900),
        examples[7].moved(&attention, 1700),
    ];
    let found = |positions: usize| {
        let descent = Descent {
            steps: 300,
            queries: 16,
            rate: 5e-3,
            positions,
        };
        let run = reconstruct(
            &attention,
            &moments,
            &start,
            &examples,
            descent,
            &mut |_, _| {},
        );
        error(&attention, &run.unwrap().0, &far)
    };
    let (near, all) = (found(LENGTH), found(2000));
    assert!(
        all < near,
        "{all} over all positions, {near} on the text's own"
    );
    assert!(all < error(&attention, &start, &far));
}
