//! Allocation of separate ranks to the keys and values of every layer, with the same total cache size as a uniform
//! rank.
//!
//! The keys and the values of each layer are probed separately: reduced to the uniform rank while all others have full
//! rank, and the KL of the next token to the original is measured. This KL divided by the loss that the spectrum
//! predicts is the price of one unit of spectrum. Each unit of rank is then assigned to the side for which it reduces the
//! predicted KL most.

use std::collections::{BTreeMap, BTreeSet};

use gqa2mla_passes::factor::Ranks;
use gqa2mla_passes::{RankPlan, RewriteOptions};

use crate::compress::compressor::Compressor;
use crate::compress::error::CompressError;
use crate::compress::events::{Observer, Stage, steps};
use crate::measure::text::Text;

/// Number of tokens of a probe.
const PROBED: usize = 512;
/// Smallest cost of a side relative to the largest: if a probe measures no loss, the text is too short to show it.
const CHEAPEST: f64 = 1e-4;

/// Whether the keys and the values of one layer may have different ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sides {
    /// Keys and values have separate ranks.
    Apart,
    /// Keys and values of a layer have the same rank.
    Alike,
}

/// The loss of one side of a layer, its keys or its values, as a function of the rank.
#[derive(Debug, Clone, Copy)]
pub struct Curve<'c> {
    /// Second moment along each eigenvector, largest first.
    pub spectrum: &'c [f64],
    /// Loss per unit of second moment that is dropped.
    pub price: f64,
}

/// The ranks of all sides, at least 1 each, with the least loss whose sum is `budget`, or less if all sides have full
/// rank.
#[must_use]
pub fn allot(sides: &[Curve], budget: usize) -> Vec<usize> {
    let mut widths: Vec<usize> = sides.iter().map(|s| s.spectrum.len().min(1)).collect();
    let mut gains: Vec<(f64, usize)> = Vec::new();
    for (number, side) in sides.iter().enumerate() {
        let later = side.spectrum.iter().skip(1);
        gains.extend(later.map(|value| (side.price * value.max(0.0), number)));
    }
    // Spectra are descending, so the largest gains are the first eigenvectors of each side. Ties go to the earlier
    // side.
    gains.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let left = budget.saturating_sub(widths.iter().sum());
    for (_, number) in gains.into_iter().take(left) {
        if let Some(width) = widths.get_mut(number) {
            *width += 1;
        }
    }
    widths
}

/// As [`allot`], with one common rank for each two successive entries of `sides`: the keys and the values of a layer.
fn allot_alike(sides: &[Curve], budget: usize) -> Vec<usize> {
    let joint: Vec<Vec<f64>> = sides
        .chunks_exact(2)
        .map(|pair| {
            let longest = pair.iter().map(|c| c.spectrum.len()).max().unwrap_or(0);
            let cost = |c: &Curve, at: usize| c.price * c.spectrum.get(at).copied().unwrap_or(0.0);
            (0..longest)
                .map(|at| pair.iter().map(|c| cost(c, at)).sum())
                .collect()
        })
        .collect();
    let layers = joint.iter().map(|spectrum| Curve {
        spectrum,
        price: 1.0,
    });
    let widths = allot(&layers.collect::<Vec<_>>(), budget / 2);
    widths.into_iter().flat_map(|width| [width; 2]).collect()
}

/// Ranks for every attention with the same total number of cached elements as the uniform rank of `options`. The probes
/// are run on the first tokens of `text`.
///
/// # Errors
/// [`CompressError`] if a probe cannot be written or run.
pub fn free(
    compressor: &Compressor,
    options: &RewriteOptions,
    sides: Sides,
    text: &Text,
    observer: &mut Observer,
) -> Result<RankPlan, CompressError> {
    let length = text.length.min(PROBED);
    let few = Text {
        ids: text.ids.iter().take(length).copied().collect(),
        length,
    };
    let quick = compressor.without_reconstruction();
    let mut progress = steps(Stage::Probing, observer);
    // At full rank a side has no spectrum, so the probe uses at most one less than the full rank.
    let planned = compressor.check(options)?;
    let below = |rank: usize, whole: usize| rank.min(whole.saturating_sub(1)).max(1);
    let narrower = planned.iter().map(|p| {
        let full = options.form.full_ranks(&p.site);
        let ranks = Ranks {
            key: below(p.ranks.key, full.key),
            value: below(p.ranks.value, full.value),
        };
        (p.id.clone(), ranks)
    });
    let probed = RewriteOptions {
        ranks: RankPlan::Each(narrower.collect()),
        ..options.clone()
    };
    let (common, _) = quick.measure(&probed, &few, &mut |_| {})?;
    // Attentions that read one cache have one width.
    let mut seen = BTreeSet::new();
    let sites = common.sites.iter().filter(|site| seen.insert(&site.id));
    let sites: Vec<_> = sites.collect();
    let caches = planned.iter().filter(|p| p.site.shares.is_none());
    let within = caches.map(|p| {
        let full = options.form.full_ranks(&p.site);
        p.ranks.key.min(full.key) + p.ranks.value.min(full.value)
    });
    let budget = within.sum();
    let (total, mut done) = (2 * sites.len(), 0);
    let mut curves: Vec<Curve> = Vec::new();
    for site in &sites {
        let (common, full) = (site.ranks, site.full);
        let alone = [
            (
                &site.key,
                Ranks {
                    value: full.value,
                    ..common
                },
            ),
            (
                &site.value,
                Ranks {
                    key: full.key,
                    ..common
                },
            ),
        ];
        for (side, ranks) in alone {
            progress(done, total);
            let probe = RewriteOptions {
                ranks: RankPlan::Each(BTreeMap::from([(site.id.clone(), ranks)])),
                ..options.clone()
            };
            let (_, quality) = quick.measure(&probe, &few, &mut |_| {})?;
            let lost = side.loss.unwrap_or(0.0) * side.spectrum.iter().sum::<f64>();
            curves.push(Curve {
                spectrum: &side.spectrum,
                price: if lost > 0.0 {
                    quality.mean_kl.max(0.0) / lost
                } else {
                    0.0
                },
            });
            done += 1;
        }
    }
    progress(total, total);
    let whole = |c: &Curve| c.price * c.spectrum.iter().sum::<f64>();
    let dearest = curves.iter().map(whole).fold(0.0, f64::max);
    for curve in &mut curves {
        let sum: f64 = curve.spectrum.iter().sum();
        if sum > 0.0 {
            curve.price = curve.price.max(CHEAPEST * dearest / sum);
        }
    }
    let widths = match sides {
        Sides::Apart => allot(&curves, budget),
        Sides::Alike => allot_alike(&curves, budget),
    };
    let pairs = sites.iter().zip(widths.chunks_exact(2));
    let ranks = pairs.filter_map(|(site, pair)| match *pair {
        [key, value] => Some((site.id.clone(), Ranks { key, value })),
        _ => None,
    });
    Ok(RankPlan::Each(ranks.collect()))
}

#[cfg(test)]
mod tests {
    use super::{Curve, allot};

    fn loss(sides: &[Curve], widths: &[usize]) -> f64 {
        let one = |(side, width): (&Curve, &usize)| {
            side.price * side.spectrum.iter().skip(*width).sum::<f64>()
        };
        sides.iter().zip(widths).map(one).sum()
    }

    #[test]
    fn no_other_widths_of_the_same_sum_lose_less() {
        let sides = [
            Curve {
                spectrum: &[9.0, 3.0, 1.0, 0.5],
                price: 1.0,
            },
            Curve {
                spectrum: &[4.0, 4.0, 4.0, 0.0],
                price: 0.4,
            },
            Curve {
                spectrum: &[100.0, 1.0, 1.0, 1.0],
                price: 0.1,
            },
        ];
        for budget in 3..=12 {
            let found = allot(&sides, budget);
            assert_eq!(found.iter().sum::<usize>(), budget);
            let best = (0..64).map(|n| [n % 4 + 1, n / 4 % 4 + 1, n / 16 + 1]);
            let best = best
                .filter(|widths| widths.iter().sum::<usize>() == budget)
                .map(|widths| loss(&sides, &widths))
                .fold(f64::INFINITY, f64::min);
            assert!(
                (loss(&sides, &found) - best).abs() < 1e-12,
                "budget {budget}: {found:?}"
            );
        }
    }

    #[test]
    fn keys_and_values_of_a_layer_can_have_one_width() {
        let side = |spectrum, price| Curve { spectrum, price };
        let sides = [
            side(&[4.0, 1.0, 0.5], 1.0),
            side(&[1.0, 1.0, 1.0], 0.1),
            side(&[9.0, 8.0, 7.0], 1.0),
            side(&[1.0, 0.0, 0.0], 1.0),
        ];
        assert_eq!(super::allot_alike(&sides, 8), [1, 1, 3, 3]);
        assert_eq!(super::allot_alike(&sides, 100), [3, 3, 3, 3]);
    }

    #[test]
    fn every_side_keeps_something_and_none_more_than_it_has() {
        let sides = [
            Curve {
                spectrum: &[1.0, 1.0],
                price: 0.0,
            },
            Curve {
                spectrum: &[5.0, 5.0, 5.0],
                price: 1.0,
            },
        ];
        assert_eq!(allot(&sides, 4), [1, 3]);
        assert_eq!(allot(&sides, 40), [2, 3]);
    }
}
