//! The factorization keeps what it promises: exact at full rank, the predicted error below, and no better choice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod common;

use common::{Random, assert_close};
use gqa2mla_passes::factor::SideMoments;
use gqa2mla_passes::factor::weighted::{SideFactors, factors};
use ndarray::{Array1, Array2, s};

/// Rows [count, n] whose channels are correlated.
fn rows(seed: u64, count: usize, n: usize) -> Array2<f64> {
    let mut random = Random(seed);
    let mix = random.matrix(n, n) * &Array1::from_shape_fn(n, |i| 1.0 / (1.0 + i as f64));
    random.matrix(count, n).dot(&mix.t())
}

fn moment(rows: &Array2<f64>) -> Array2<f64> {
    rows.t().dot(rows) / rows.nrows() as f64
}

/// The ups of all heads below one another, [G*d, r].
fn stacked(side: &SideFactors) -> Array2<f64> {
    let (heads, size, rank) = side.up.dim();
    side.up.to_shape((heads * size, rank)).unwrap().to_owned()
}

/// The share of the weighted second moment of `rows` that is lost when they go down and up again.
fn measured(
    rows: &Array2<f64>,
    weight: &[Array2<f64>],
    down: &Array2<f64>,
    up: &Array2<f64>,
) -> f64 {
    let lost = rows - &rows.dot(down).dot(&up.t());
    let size = weight[0].nrows();
    let weighted = |x: &Array2<f64>| -> f64 {
        weight
            .iter()
            .enumerate()
            .map(|(head, w)| {
                let block = x.slice(s![.., head * size..(head + 1) * size]);
                (&block.dot(w) * &block).sum()
            })
            .sum()
    };
    weighted(&lost) / weighted(rows)
}

const SHAPES: [(usize, usize); 4] = [(1, 16), (2, 16), (3, 8), (4, 24)];

fn weights(seed: u64, heads: usize, size: usize) -> Vec<Array2<f64>> {
    (0..heads)
        .map(|head| moment(&rows(seed + head as u64, 3 * size, size)))
        .collect()
}

#[test]
fn at_full_rank_down_and_up_are_inverse_to_each_other_whatever_the_moments() {
    for (heads, size) in SHAPES {
        let n = heads * size;
        let singular = moment(&rows(5, n / 2, n));
        let cases = [
            SideMoments::white(n),
            SideMoments {
                cached: moment(&rows(1, 4 * n, n)),
                weight: None,
                measured: true,
            },
            SideMoments {
                cached: moment(&rows(2, 4 * n, n)),
                weight: Some(weights(3, heads, size)),
                measured: true,
            },
            SideMoments {
                cached: singular,
                weight: None,
                measured: true,
            },
            SideMoments {
                cached: Array2::zeros((n, n)),
                weight: None,
                measured: true,
            },
        ];
        for (case, moments) in cases.iter().enumerate() {
            for rank in [n, n + 8] {
                let side = factors(moments, heads, rank).unwrap();
                assert_eq!(
                    (side.down.dim(), side.up.dim()),
                    ((n, rank), (heads, size, rank))
                );
                assert_eq!(side.predicted_error(), 0.0, "case {case}");
                let there_and_back = side.down.dot(&stacked(&side).t());
                // Channels are scaled by at most 1e4 and back.
                assert_close(
                    &format!("case {case} at {heads}x{size}, rank {rank}"),
                    &there_and_back,
                    &Array2::eye(n),
                    1e-12,
                );
                assert!(
                    side.down.slice(s![.., n..]).iter().all(|x| *x == 0.0),
                    "what is beyond the full rank is zero"
                );
            }
        }
    }
}

#[test]
fn the_predicted_error_is_what_the_samples_lose() {
    for (heads, size) in SHAPES {
        let n = heads * size;
        let rows = rows(7, 3 * n, n);
        let plain = vec![Array2::eye(size); heads];
        for weight in [None, Some(weights(8, heads, size))] {
            let moments = SideMoments {
                cached: moment(&rows),
                weight: weight.clone(),
                measured: true,
            };
            let mut last = 1.0;
            for rank in [1, n / 4, n / 2, n - 1] {
                let side = factors(&moments, heads, rank).unwrap();
                let found = measured(
                    &rows,
                    weight.as_ref().unwrap_or(&plain),
                    &side.down,
                    &stacked(&side),
                );
                let told = side.predicted_error();
                // Both are sums of squares of the same numbers.
                assert!(
                    (found - told).abs() <= 1e-9,
                    "{told} told, {found} found at rank {rank} of {n}"
                );
                assert!(
                    told < last && told > 0.0,
                    "a higher rank loses less: {told} after {last}"
                );
                last = told;
            }
        }
    }
}

#[test]
fn nothing_of_the_same_rank_loses_less() {
    let (heads, size, rank) = (3, 16, 24);
    let n = heads * size;
    let rows = rows(11, 3 * n, n);
    let weight = weights(12, heads, size);
    let weighted = SideMoments {
        cached: moment(&rows),
        weight: Some(weight.clone()),
        measured: true,
    };
    let best = factors(&weighted, heads, rank).unwrap();
    let loss = |side: &SideFactors| measured(&rows, &weight, &side.down, &stacked(side));
    let best = loss(&best);
    for seed in 0..20 {
        let q = Random(100 + seed).orthonormal(n, rank);
        let random = measured(&rows, &weight, &q, &q);
        assert!(
            best < 0.5 * random,
            "{best} against {random} of a random projection"
        );
    }
    // The readers' weight matters: leaving it out is a worse choice for these readers.
    let unweighted = factors(
        &SideMoments {
            weight: None,
            ..weighted
        },
        heads,
        rank,
    )
    .unwrap();
    assert!(
        best < loss(&unweighted),
        "{best} against {} without the weight",
        loss(&unweighted)
    );
}

#[test]
fn latent_channels_have_unit_second_moment() {
    let n = 32;
    let rows = rows(21, 4 * n, n);
    let side = factors(
        &SideMoments {
            cached: moment(&rows),
            weight: None,
            measured: true,
        },
        2,
        20,
    )
    .unwrap();
    assert_close(
        "the moment of the latent",
        &moment(&rows.dot(&side.down)),
        &Array2::eye(20),
        1e-9,
    );
}

#[test]
fn the_same_moments_give_the_same_bits() {
    let moments = SideMoments {
        cached: moment(&rows(31, 200, 48)),
        weight: Some(weights(32, 3, 16)),
        measured: true,
    };
    let once = factors(&moments, 3, 24).unwrap();
    let handle = std::thread::spawn(move || factors(&moments, 3, 24).unwrap());
    let again = handle.join().unwrap();
    assert_eq!((once.down, once.up), (again.down, again.up));
}
