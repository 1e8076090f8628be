//! Moments that hold at every position: the closed form is the mean over explicit rotations, and what is recorded with
//! the rotation undone gives the moments of text read at other positions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod common;

use common::{Random, assert_close};
use gqa2mla_passes::factor::Statistics;
use gqa2mla_passes::factor::rope::Rope;
use gqa2mla_passes::factor::statistics::{Activations, Recipe};
use gqa2mla_passes::factor::weighted::factors;
use ndarray::{Array1, Array2, Array3, ArrayView2, s};

const KV_HEADS: usize = 2;
const HEADS: usize = 4;
const SIZE: usize = 7;
const N: usize = KV_HEADS * SIZE;
const LENGTH: usize = 30;

/// The rotations that models have: halves, neighbours, the first channels only, none; slow pairs among fast ones.
fn ropes() -> Vec<Rope> {
    let of = |pairs: &[(usize, usize)], frequencies: &[f64]| {
        Rope::new(SIZE, pairs.to_vec(), frequencies.to_vec()).unwrap()
    };
    vec![
        of(&[(0, 3), (1, 4), (2, 5)], &[1.0, 0.1, 0.002]),
        of(&[(0, 1), (2, 3), (4, 5)], &[1.0, 0.1, 0.1]),
        of(&[(0, 2), (1, 3)], &[0.7, 1e-7]),
        of(&[], &[]),
    ]
}

/// R_n for all heads, written out.
fn rotation(rope: &Rope, position: usize) -> Array2<f64> {
    let mut matrix = Array2::eye(N);
    for first in (0..N).step_by(SIZE) {
        for (&(x, y), frequency) in rope.pairs().iter().zip(rope.frequencies()) {
            let (x, y) = (first + x, first + y);
            let (sin, cos) = (frequency * position as f64).sin_cos();
            matrix[(x, x)] = cos;
            matrix[(x, y)] = -sin;
            matrix[(y, x)] = sin;
            matrix[(y, y)] = cos;
        }
    }
    matrix
}

#[test]
fn the_closed_form_is_the_mean_over_explicit_rotations() {
    let rows = Random(1).matrix(3 * N, N);
    let (square, mean) = (rows.t().dot(&rows), rows.sum_axis(ndarray::Axis(0)));
    for (number, rope) in ropes().iter().enumerate() {
        for positions in [1, 2, 50, 300] {
            let (mut squares, mut means) = (Array2::zeros((N, N)), Array1::zeros(N));
            for position in 0..positions {
                let r = rotation(rope, position);
                squares += &(r.dot(&square).dot(&r.t()) / positions as f64);
                means += &(r.dot(&mean) / positions as f64);
            }
            let name = format!("rotation {number} over {positions}");
            // Sums of 300 terms in double precision.
            assert_close(
                &name,
                &rope.mean_square(&square, positions),
                &squares,
                1e-11,
            );
            let found = rope.mean(&mean, positions).insert_axis(ndarray::Axis(1));
            let off = &found - &means.insert_axis(ndarray::Axis(1));
            assert!(off.iter().all(|x| x.abs() < 1e-10), "{name}: {off}");
        }
    }
}

#[test]
fn rotating_back_undoes_the_rotation_and_positions_add_up() {
    let rows: Vec<f32> = Random(2)
        .matrix(5, N)
        .mapv(|x| x as f32)
        .into_iter()
        .collect();
    for rope in ropes() {
        let mut there = rows.clone();
        rope.rotate(&mut there, N, &|row| row as f64);
        rope.rotate(&mut there, N, &|_| 100.0);
        let mut at_once = rows.clone();
        rope.rotate(&mut at_once, N, &|row| row as f64 + 100.0);
        let mut back = at_once.clone();
        rope.rotate(&mut back, N, &|row| -(row as f64) - 100.0);
        let apart = |a: &[f32], b: &[f32]| {
            let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
            differences.fold(0.0f32, f32::max)
        };
        // Numbers near 1 in single precision, rotated twice.
        assert!(apart(&there, &at_once) < 2e-6);
        assert!(apart(&back, &rows) < 2e-6);
    }
}

/// What an attention shows of one sequence.
struct Shown {
    queries: Array3<f32>,
    keys: Array3<f32>,
    unrotated: Array2<f32>,
}

/// Content of unlike directions with a mean, so that centring and averaging both have something to do.
fn content(seed: u64) -> Array2<f64> {
    let mut random = Random(seed);
    let mean = random.matrix(1, N);
    random.matrix(LENGTH, N) + &mean
}

/// The attention reads `content` [T, G*d] from position 0 on.
fn shown(rope: &Rope, content: &Array2<f64>) -> Shown {
    let asked = Random(99).matrix(LENGTH, HEADS * SIZE);
    let rotated = |rows: &Array2<f64>| {
        let (width, mut flat) = (
            rows.ncols(),
            rows.mapv(|x| x as f32).into_iter().collect::<Vec<_>>(),
        );
        rope.rotate(&mut flat, width, &|row| row as f64);
        Array2::from_shape_vec((LENGTH, width), flat).unwrap()
    };
    let by_head = |rows: Array2<f32>| {
        let heads = rows.ncols() / SIZE;
        Array3::from_shape_fn((heads, LENGTH, SIZE), |(h, t, i)| rows[(t, h * SIZE + i)])
    };
    Shown {
        queries: by_head(rotated(&asked)),
        keys: by_head(rotated(content)),
        unrotated: content.mapv(|x| x as f32),
    }
}

fn statistics(rope: Option<Rope>, all: &[Shown]) -> Statistics {
    let mut sums = Statistics::new(HEADS, KV_HEADS, SIZE, 1, true).expecting(rope);
    let values = Array3::zeros((KV_HEADS, LENGTH, 1));
    let received = Array2::zeros((HEADS, LENGTH));
    for one in all {
        sums.add(&Activations {
            queries: one.queries.view(),
            keys: one.keys.view(),
            values: values.view(),
            unrotated: Some(
                ArrayView2::from_shape((LENGTH, N), one.unrotated.as_slice().unwrap()).unwrap(),
            ),
            received: received.view(),
            received_squared: received.view(),
        });
    }
    sums
}

const RECIPE: Recipe = Recipe {
    weighted: true,
    centred_keys: true,
    received_values: false,
    unrotated: false,
    positions: 500,
};

/// Text that is read at the first positions only gives the moments of the same text read at every position in turn.
#[test]
fn moments_of_a_short_text_are_those_of_the_text_at_all_positions() {
    for rope in ropes() {
        let found =
            statistics(Some(rope.clone()), &[shown(&rope, &content(5))]).moments(RECIPE, None);
        // The content of every token is met at each position once: rotate it there by hand.
        let rows = content(5);
        let count = (LENGTH * RECIPE.positions) as f64;
        let (mut sum, mut square) = (Array1::zeros(N), Array2::zeros((N, N)));
        for position in 0..RECIPE.positions {
            let rotated = rows.dot(&rotation(&rope, position).t());
            sum += &(rotated.sum_axis(ndarray::Axis(0)) / count);
            square += &(rotated.t().dot(&rotated) / count);
        }
        let column = sum.insert_axis(ndarray::Axis(1));
        let covariance = square - column.dot(&column.t());
        // Rows are rotated there and back in single precision.
        assert_close("keys", &found.key.cached, &covariance, 1e-5);
        let weight = found.key.weight.unwrap();
        let at_zero = shown(&rope, &content(5)).queries;
        for (group, weight) in weight.iter().enumerate() {
            let mut square = Array2::<f64>::zeros((SIZE, SIZE));
            for head in 2 * group..2 * group + 2 {
                for (token, q) in at_zero.slice(s![head, .., ..]).outer_iter().enumerate() {
                    let mut q = q.to_vec();
                    rope.rotate(&mut q, SIZE, &|_| -(token as f64));
                    let q = Array2::from_shape_fn((SIZE, 1), |(i, _)| f64::from(q[i]));
                    square += &q.dot(&q.t());
                }
            }
            let explicit = rope.mean_square(&(square / LENGTH as f64), RECIPE.positions);
            assert_close("queries", weight, &explicit, 1e-5);
        }
    }
}

#[test]
fn a_rotation_that_the_keys_do_not_show_is_not_relied_on() {
    let rope = &ropes()[0];
    let faster = vec![1.0, 0.2, 0.002];
    let other = Rope::new(SIZE, rope.pairs().to_vec(), faster).unwrap();
    let seen = [shown(rope, &content(5)), shown(rope, &content(6))];
    assert!(
        statistics(Some(rope.clone()), &seen)
            .position_free
            .is_some()
    );
    for wrong in [Some(other.clone()), Some(ropes()[1].clone()), None] {
        let sums = statistics(wrong, &seen);
        assert_eq!(sums.position_free, None);
        // What was read is all there is, whatever the positions.
        let few = Recipe {
            positions: 1,
            ..RECIPE
        };
        assert_eq!(
            sums.moments(RECIPE, None).key.cached,
            sums.moments(few, None).key.cached
        );
    }
    // Frequencies that change in the middle of the text, as those that follow the length do.
    let seen = [shown(rope, &content(5)), shown(&other, &content(6))];
    assert_eq!(statistics(Some(rope.clone()), &seen).position_free, None);
}

#[test]
fn pairs_that_no_head_has_make_no_rotation() {
    for (pairs, frequencies) in [
        (vec![(0, SIZE)], vec![1.0]),
        (vec![(0, 1), (1, 2)], vec![1.0, 0.5]),
        (vec![(0, 1)], vec![1.0, 0.5]),
        (vec![(0, 1)], vec![f64::NAN]),
    ] {
        assert_eq!(Rope::new(SIZE, pairs, frequencies), None);
    }
}

/// Content of one direction, and a little noise, fills seven directions as its three pairs move. Slow ones hardly do so within
/// the text: factors of its own positions keep noise in their place, and lose far from it what those of the averaged moments
/// keep.
#[test]
fn factors_hold_far_beyond_the_text_they_were_made_from() {
    let slow = vec![0.004, 0.002, 0.001];
    let rope = Rope::new(SIZE, vec![(0, 3), (1, 4), (2, 5)], slow).unwrap();
    let mix = Random(7).matrix(1, N);
    let content = |seed: u64| {
        let mut random = Random(seed);
        random.matrix(LENGTH, 1).dot(&mix) + random.matrix(LENGTH, N) * 0.05
    };
    let seen: Vec<Shown> = (20..40).map(|seed| shown(&rope, &content(seed))).collect();
    let recipe = Recipe {
        weighted: false,
        centred_keys: false,
        positions: 2000,
        ..RECIPE
    };
    let worst = |sums: &Statistics| {
        let side = factors(&sums.moments(recipe, None).key, KV_HEADS, 7).unwrap();
        let up = side.up.to_shape((N, 7)).unwrap();
        let lost = |position: usize| {
            let rows = content(5).dot(&rotation(&rope, position).t());
            let left = &rows - &rows.dot(&side.down).dot(&up.t());
            (&left * &left).sum() / (&rows * &rows).sum()
        };
        [0, 500, 1000, 1500, 1900]
            .map(lost)
            .into_iter()
            .fold(0.0, f64::max)
    };
    let anywhere = worst(&statistics(Some(rope.clone()), &seen));
    let near_only = worst(&statistics(None, &seen));
    assert!(
        near_only > 20.0 * anywhere,
        "{near_only} against {anywhere}"
    );
}
