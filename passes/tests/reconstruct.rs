//! Local reconstruction: its gradient is that of its error, and it never makes things worse.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod common;

use common::Random;
use gqa2mla_passes::factor::reconstruct::{
    Attention, Descent, Example, Rotary, Sequence, error, gradient, outputs, reconstruct,
};
use gqa2mla_passes::factor::rope::Rope;
use gqa2mla_passes::factor::{Factors, Moments, Ranks, SideMoments, factor};
use ndarray::{Array2, s};

const HEADS: usize = 4;
const GROUPS: usize = 2;
const SIZE: usize = 6;
const VALUE: usize = 5;
const LENGTH: usize = 40;

fn attention() -> Attention {
    let reader = Random(1).matrix(HEADS * VALUE, 16);
    Attention {
        heads: HEADS,
        kv_heads: GROUPS,
        key_size: SIZE,
        value_size: VALUE,
        scale: 0.6,
        value_scale: 1.5,
        softcap: None,
        window: None,
        rotary: None,
        rope: None,
        readers: Some(reader.dot(&reader.t())),
    }
}

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

/// The pairs of a rotation of the first `width` channels in halves.
fn halves(width: usize) -> Vec<(usize, usize)> {
    (0..width / 2).map(|l| (l, l + width / 2)).collect()
}

/// Rows [T, G*d] of `heads` heads with the channels of each of `pairs` rotated by their own frequency, in fp64.
fn rotated(rows: &[f32], heads: usize, pairs: &[(usize, usize)]) -> Vec<f32> {
    let mut turned = rows.to_vec();
    for (position, row) in turned.chunks_mut(heads * SIZE).enumerate() {
        for head in row.chunks_mut(SIZE) {
            for (number, &(x, y)) in pairs.iter().enumerate() {
                let angle = position as f64 / (1.0 + 3.0 * number as f64);
                let (a, b) = (f64::from(head[x]), f64::from(head[y]));
                head[x] = (a * angle.cos() - b * angle.sin()) as f32;
                head[y] = (a * angle.sin() + b * angle.cos()) as f32;
            }
        }
    }
    turned
}

fn rotary(pairs: &[(usize, usize)]) -> Rotary {
    let rows = sequence(1).keys;
    Rotary::between(&rows, &rotated(&rows, GROUPS, pairs), GROUPS, SIZE).unwrap()
}

fn sequence(seed: u64) -> Sequence {
    let mut random = Random(seed);
    // Channels of unlike size, so that a smaller latent has something to choose from.
    let mut rows = |count: usize, width: usize| -> Vec<f32> {
        (0..count * width)
            .map(|at| (random.normal() / (1.0 + (at % width) as f64 * 0.4)) as f32)
            .collect()
    };
    Sequence {
        length: LENGTH,
        queries: rows(HEADS * LENGTH, SIZE),
        keys: rows(LENGTH, GROUPS * SIZE),
        values: rows(LENGTH, GROUPS * VALUE),
    }
}

/// What `attention` makes of the sequences with these seeds.
fn examples(attention: &Attention, seeds: std::ops::Range<u64>) -> Vec<Example> {
    seeds.map(|s| Example::of(attention, sequence(s))).collect()
}

fn moments(sequences: &[Sequence]) -> Moments {
    let square = |rows: &dyn Fn(&Sequence) -> Vec<f32>, width: usize| {
        let mut sum = Array2::<f64>::zeros((width, width));
        for sequence in sequences {
            let rows = rows(sequence).iter().map(|&x| f64::from(x)).collect();
            let rows = Array2::from_shape_vec((LENGTH, width), rows).unwrap();
            sum += &rows.t().dot(&rows);
        }
        sum / (LENGTH * sequences.len()) as f64
    };
    Moments {
        key: SideMoments {
            cached: square(&|s| s.keys.clone(), GROUPS * SIZE),
            weight: Some(
                (0..GROUPS)
                    .map(|g| Random(g as u64).positive(SIZE))
                    .collect(),
            ),
            measured: true,
        },
        value: SideMoments {
            cached: square(&|s| s.values.clone(), GROUPS * VALUE),
            weight: Some(
                (0..GROUPS)
                    .map(|g| Random(9 + g as u64).positive(VALUE))
                    .collect(),
            ),
            measured: true,
        },
        mean_output: Some(Random(5).matrix(HEADS, GROUPS * VALUE) * 0.1),
    }
}

fn start(rank: usize) -> (Moments, Factors) {
    let moments = moments(&[sequence(3), sequence(4)]);
    let factors = factor(&moments, GROUPS, Ranks::uniform(rank)).unwrap();
    (moments, factors)
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
