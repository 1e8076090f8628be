//! Selection of the queries and the position offset of each step. It is deterministic: no random numbers are used.

/// `count` of `length` queries, evenly spaced by a stride. Each pass `round` starts at another offset below the stride.
/// Successive offsets differ by about half the stride, a step coprime to it, so that all offsets are used before one
/// repeats.
pub fn queries(length: usize, count: usize, round: usize) -> Vec<usize> {
    let stride = length.div_ceil(count.max(1)).max(1);
    let far = (stride / 2 + 1..=stride).find(|&n| common_factor(n, stride) == 1);
    let first = round % stride * far.unwrap_or(1) % stride;
    (first..length).step_by(stride).collect()
}

/// An offset from 0 to `span` for each step: a low-discrepancy sequence, multiples of the golden ratio modulo 1.
pub fn offset(span: usize, step: usize) -> usize {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let share = (step as f64 * GOLDEN).fract();
    (share * (span + 1) as f64) as usize
}

/// Greatest common divisor, by Euclid.
fn common_factor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => common_factor(b, a % b),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{offset, queries};

    #[test]
    fn every_query_is_looked_at_before_one_is_looked_at_again() {
        for stride in 1..=16usize {
            for length in [16 * stride, 16 * stride + 5] {
                let count = length.div_ceil(stride);
                let rounds = length.div_ceil(count);
                let seen: Vec<usize> = (0..rounds)
                    .flat_map(|round| queries(length, count, round))
                    .collect();
                let different: BTreeSet<usize> = seen.iter().copied().collect();
                assert_eq!(different.len(), length, "{count} of {length}");
                assert_eq!(seen.len(), length, "{count} of {length}");
            }
        }
    }

    #[test]
    fn offsets_reach_all_positions_evenly() {
        for span in [0, 1, 3072] {
            let all: Vec<usize> = (0..300).map(|step| offset(span, step)).collect();
            assert!(all.iter().all(|&n| n <= span));
            let late = all.iter().filter(|&&n| 2 * n > span).count();
            assert!(span == 0 || (140..160).contains(&late), "{late} of 300");
        }
    }
}
