//! One small attention with sequences, moments and factors.

use gqa2mla_passes::factor::reconstruct::{Attention, Example, Rotary, Sequence};
use gqa2mla_passes::factor::{Factors, Moments, Ranks, SideMoments, factor};
use ndarray::Array2;

use super::Random;

pub const HEADS: usize = 4;
pub const GROUPS: usize = 2;
pub const SIZE: usize = 6;
pub const VALUE: usize = 5;
pub const LENGTH: usize = 40;

pub fn attention() -> Attention {
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

/// The pairs of a rotation of the first `width` channels in halves.
pub fn halves(width: usize) -> Vec<(usize, usize)> {
    (0..width / 2).map(|l| (l, l + width / 2)).collect()
}

/// Rows [T, G*d] of `heads` heads with the channels of each of `pairs` rotated by their own frequency, in fp64.
pub fn rotated(rows: &[f32], heads: usize, pairs: &[(usize, usize)]) -> Vec<f32> {
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

pub fn rotary(pairs: &[(usize, usize)]) -> Rotary {
    let rows = sequence(1).keys;
    Rotary::between(&rows, &rotated(&rows, GROUPS, pairs), GROUPS, SIZE).unwrap()
}

pub fn sequence(seed: u64) -> Sequence {
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
pub fn examples(attention: &Attention, seeds: std::ops::Range<u64>) -> Vec<Example> {
    seeds.map(|s| Example::of(attention, sequence(s))).collect()
}

pub fn moments(sequences: &[Sequence]) -> Moments {
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

pub fn start(rank: usize) -> (Moments, Factors) {
    let moments = moments(&[sequence(3), sequence(4)]);
    let factors = factor(&moments, GROUPS, Ranks::uniform(rank)).unwrap();
    (moments, factors)
}
