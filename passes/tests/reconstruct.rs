//! Local reconstruction: its gradient is that of its error, and it never makes things worse.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod common;

use common::attention::{
    GROUPS, HEADS, LENGTH, SIZE, VALUE, attention, examples, halves, rotary, rotated, sequence,
    start,
};
use gqa2mla_passes::factor::Factors;
use gqa2mla_passes::factor::reconstruct::{
    Attention, Descent, Rotary, error, gradient, outputs, reconstruct,
};
use ndarray::{Array2, s};

/// Every attention that has a path of its own.
fn attentions() -> Vec<(&'static str, Attention)> {
    let plain = attention();
    vec![
        ("plain", plain.clone()),
        (
            "soft-cap",
            Attention {
                softcap: Some(2.0),
                ..plain.clone()
            },
        ),
        (
            "window",
            Attention {
                window: Some(7),
                ..plain.clone()
            },
        ),
        (
            "no readers",
            Attention {
                readers: None,
                ..plain.clone()
            },
        ),
        (
            "rotated",
            Attention {
                rotary: Some(rotary(&halves(SIZE))),
                ..plain
            },
        ),
    ]
}

/// Every number of the factors, in one fixed order.
fn numbers(factors: &mut Factors) -> Vec<&mut f64> {
    let mut all: Vec<&mut f64> = Vec::new();
    all.extend(factors.key.down.iter_mut());
    all.extend(factors.key.up.iter_mut());
    all.extend(factors.value.down.iter_mut());
    all.extend(factors.value.up.iter_mut());
    all.extend(factors.bias.as_mut().unwrap().iter_mut());
    all
}

#[test]
fn the_gradient_is_that_of_the_error() {
    let queries: Vec<usize> = (0..LENGTH).step_by(3).collect();
    for (name, attention) in attentions() {
        let (_, factors) = start(5);
        let sequence = sequence(7);
        let (_, mut slope) = gradient(&attention, &factors, &sequence, &queries);
        let slopes: Vec<f64> = numbers(&mut slope).iter().map(|x| **x).collect();
        let scale = slopes.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        // Every seventh number: all five parts take part.
        for at in (0..slopes.len()).step_by(7) {
            let step = 1e-2;
            let loss = |by: f64| {
                let mut moved = factors.clone();
                *numbers(&mut moved)[at] += by;
                gradient(&attention, &moved, &sequence, &queries).0
            };
            let rise = (loss(step) - loss(-step)) / (2.0 * step);
            // Single precision: a loss of some hundreds is known to 1e-4, over a step of 2e-2; and third derivatives.
            assert!(
                (rise - slopes[at]).abs() <= 1e-2 * scale,
                "{name}, number {at}: {rise} by differences, {} by the chain rule, largest {scale}",
                slopes[at]
            );
        }
    }
}

#[test]
fn descent_lowers_the_error_on_a_sequence_that_it_has_not_seen() {
    let descent = Descent {
        steps: 200,
        queries: 16,
        rate: 5e-3,
        positions: LENGTH,
    };
    for (name, attention) in attentions() {
        let (moments, start) = start(5);
        let examples = examples(&attention, 20..28);
        let mut told = Vec::new();
        let (found, [before, after]) = reconstruct(
            &attention,
            &moments,
            &start,
            &examples,
            descent,
            &mut |step, error| told.push((step, error)),
        )
        .unwrap();
        assert!(after < 0.9 * before, "{name}: {before} -> {after}");
        let aside = &examples[7..];
        assert!((error(&attention, &start, aside) - before).abs() < 1e-6);
        assert!((error(&attention, &found, aside) - after).abs() < 1e-6);
        assert_eq!(told.len(), 200);
        assert_eq!(told.last().unwrap().0, 200);
    }
}

#[test]
fn a_descent_that_runs_away_leaves_the_factors_as_they_were() {
    let examples = examples(&attention(), 20..24);
    let (moments, start) = start(5);
    let descent = Descent {
        steps: 20,
        queries: 16,
        rate: 10.0,
        positions: LENGTH,
    };
    let (found, [before, after]) = reconstruct(
        &attention(),
        &moments,
        &start,
        &examples,
        descent,
        &mut |_, _| {},
    )
    .unwrap();
    assert_eq!(before, after);
    assert_eq!(found.key.down, start.key.down);
}

#[test]
fn the_same_inputs_give_the_same_factors() {
    let examples = examples(&attention(), 20..24);
    let (moments, start) = start(4);
    let descent = Descent {
        steps: 30,
        queries: 8,
        rate: 1e-3,
        positions: LENGTH,
    };
    let run = || {
        let run = reconstruct(
            &attention(),
            &moments,
            &start,
            &examples,
            descent,
            &mut |_, _| {},
        );
        run.unwrap().0
    };
    let (one, other) = (run(), run());
    assert_eq!(one.key.down, other.key.down);
    assert_eq!(one.value.up, other.value.up);
    assert_eq!(one.bias, other.bias);
}

/// The formula, written out for one query at a time in fp64.
#[test]
fn outputs_are_those_of_the_formula() {
    for (name, attention) in attentions() {
        let sequence = sequence(11);
        let made = outputs(&attention, &sequence);
        let scored = match attention.rotary {
            Some(_) => rotated(&sequence.keys, GROUPS, &halves(SIZE)),
            None => sequence.keys.clone(),
        };
        let keys = Array2::from_shape_vec((LENGTH, GROUPS * SIZE), scored).unwrap();
        let values =
            Array2::from_shape_vec((LENGTH, GROUPS * VALUE), sequence.values.clone()).unwrap();
        for (head, query) in [(0, 0), (1, 9), (3, LENGTH - 1)] {
            let group = head / (HEADS / GROUPS);
            let at = (head * LENGTH + query) * SIZE;
            let q = &sequence.queries[at..at + SIZE];
            let first = attention
                .window
                .map_or(0, |w| (query + 1).saturating_sub(w));
            let scores: Vec<f64> = (first..=query)
                .map(|t| {
                    let k = keys.slice(s![t, group * SIZE..(group + 1) * SIZE]);
                    let dot: f64 = q.iter().zip(k).map(|(a, b)| f64::from(a * b)).sum();
                    let score = dot * attention.scale;
                    attention.softcap.map_or(score, |c| c * (score / c).tanh())
                })
                .collect();
            let sum: f64 = scores.iter().map(|s| s.exp()).sum();
            for i in 0..VALUE {
                let wanted: f64 = scores
                    .iter()
                    .enumerate()
                    .map(|(n, s)| {
                        s.exp() / sum
                            * f64::from(values[(first + n, group * VALUE + i)])
                            * attention.value_scale
                    })
                    .sum();
                let found = f64::from(made[(query * HEADS + head) * VALUE + i]);
                // Sums of up to 40 terms in single precision.
                assert!(
                    (wanted - found).abs() < 1e-5 * (1.0 + wanted.abs()),
                    "{name}, head {head}, query {query}: {found}, expected {wanted}"
                );
            }
        }
    }
}

/// Whole heads, parts of them and neighbours; of two heads and of a single one, which any pairs could be fitted to.
#[test]
fn a_rotation_is_found_between_rows_and_does_the_same_to_others() {
    let neighbours = vec![(0, 1), (2, 3), (4, 5)];
    for pairs in [halves(SIZE), halves(4), halves(2), neighbours] {
        for heads in [1, GROUPS] {
            let rows = |seed: u64| sequence(seed).keys[..LENGTH * heads * SIZE].to_vec();
            let (seen, other) = (rows(1), rows(2));
            let turned = rotated(&seen, heads, &pairs);
            let found = Rotary::between(&seen, &turned, heads, SIZE).unwrap();
            let wanted = rotated(&other, heads, &pairs);
            for head in 0..heads {
                let of = |rows: &[f32]| -> Vec<f32> {
                    let row = |row: &[f32]| row[head * SIZE..(head + 1) * SIZE].to_vec();
                    rows.chunks(heads * SIZE).flat_map(row).collect()
                };
                let mut rows = of(&other);
                found.rotate(&mut rows, SIZE);
                for (a, b) in rows.iter().zip(of(&wanted)) {
                    // Quotients of single-precision numbers.
                    assert!((a - b).abs() < 1e-5, "{pairs:?}, {heads} heads: {a}, {b}");
                }
            }
        }
    }
    // Channels that are exchanged, or rows that have nothing to do with each other.
    let rows = sequence(1).keys;
    let mut exchanged = rows.clone();
    exchanged.chunks_mut(SIZE).for_each(|head| head.swap(0, 3));
    for after in [exchanged, sequence(2).keys, vec![f32::NAN; rows.len()]] {
        assert_eq!(Rotary::between(&rows, &after, GROUPS, SIZE), None);
    }
}
