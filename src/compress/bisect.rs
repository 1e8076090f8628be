//! Bisection for the smallest rank whose loss is within a limit.
//!
//! The returned rank has been measured and is within the limit. The assumption that the loss grows as the rank falls
//! only decides which ranks are tried.

use std::collections::BTreeMap;

/// The measured loss at one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probe {
    /// The rank.
    pub rank: usize,
    /// The loss of the model with this rank, such as its increase of perplexity.
    pub loss: f64,
}

/// All ranks that were tried, and the smallest one within the limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The measured ranks, in descending order.
    pub curve: Vec<Probe>,
    /// The smallest rank whose loss is within the limit; `None` if every tried rank exceeds it.
    pub best: Option<usize>,
}

/// Bisects the multiples of `step` in `lowest..=highest` for the smallest rank whose loss is at most `limit`.
///
/// # Errors
/// The errors of `measure`.
pub fn smallest<E>(
    (lowest, highest): (usize, usize),
    step: usize,
    limit: f64,
    measure: &mut dyn FnMut(usize) -> Result<f64, E>,
) -> Result<Found, E> {
    let step = step.max(1);
    // In units of `step`: ranks below `low` exceed the limit or are not allowed; `high` is within the limit or above
    // all ranks.
    let (mut low, mut high) = (lowest.div_ceil(step).max(1), highest / step + 1);
    let mut curve: BTreeMap<usize, f64> = BTreeMap::new();
    let mut best = None;
    while low < high {
        let middle = low + (high - low) / 2;
        let loss = measure(middle * step)?;
        curve.insert(middle * step, loss);
        if loss <= limit {
            best = Some(middle * step);
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let points = curve.into_iter().rev();
    Ok(Found {
        curve: points.map(|(rank, loss)| Probe { rank, loss }).collect(),
        best,
    })
}

#[cfg(test)]
mod tests {
    use super::{Found, smallest};

    fn search(range: (usize, usize), step: usize, limit: f64) -> Found {
        let found = smallest::<()>(range, step, limit, &mut |rank| Ok(1.0 / rank as f64));
        found.unwrap_or(Found {
            curve: Vec::new(),
            best: None,
        })
    }

    #[test]
    fn the_smallest_rank_within_the_limit_is_found_and_was_measured() {
        for limit in [0.0011, 0.02, 0.1, 0.5, 2.0] {
            let found = search((1, 1000), 1, limit);
            let best = found.best.unwrap_or(0);
            assert_eq!(
                best,
                (1.0 / limit).ceil().max(1.0) as usize,
                "limit {limit}"
            );
            assert!(
                found
                    .curve
                    .iter()
                    .any(|p| p.rank == best && p.loss <= limit)
            );
            assert!(found.curve.len() <= 10);
        }
    }

    #[test]
    fn only_multiples_of_the_step_are_tried() {
        let found = search((1, 100), 8, 0.03);
        assert_eq!(found.best, Some(40));
        assert!(found.curve.iter().all(|p| p.rank % 8 == 0));
    }

    #[test]
    fn a_limit_that_every_rank_exceeds_finds_nothing() {
        assert_eq!(search((1, 100), 1, 0.001).best, None);
    }
}
