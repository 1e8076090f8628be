//! Which queries of a sequence a step looks at, and to which positions the sequence is moved for it. Nothing is drawn at
//! random: the same step picks the same.

/// `count` of `length` queries, evenly spaced. Each pass `round` begins at another place, and all places come before one
/// comes again: they are visited in steps of about half the stride that have no factor in common with it.
pub fn queries(length: usize, count: usize, round: usize) -> Vec<usize> {
    let stride = length.div_ceil(count.max(1)).max(1);
    let far = (stride / 2 + 1..=stride).find(|&n| common_factor(n, stride) == 1);
    let first = round % stride * far.unwrap_or(1) % stride;
    (first..length).step_by(stride).collect()
}

/// A number from 0 to `span` for each step, evenly spread over any run of steps: multiples of the golden ratio, modulo 1.
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
