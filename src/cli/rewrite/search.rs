//! The smallest cache that keeps a promise: the search, and what is said of it.

use std::path::Path;

use gqa2mla::compress::compressor::Compressor;
use gqa2mla::compress::search::{Found, smallest};
use gqa2mla::measure::text::Text;
use gqa2mla_passes::{RankPlan, RewriteOptions};
use serde_json::{Value, json};

use crate::cli::rewrite::bars;
use crate::cli::rewrite::size::Promise;
use crate::cli::screen::progress;

/// Ranks that a search tells apart: this many between nothing and the full rank.
const SEARCHED: usize = 48;

/// What was promised, and what was found.
#[derive(Debug, Clone)]
pub struct Searched {
    promise: Promise,
    found: Found,
}

impl Searched {
    /// The widths that keep the promise; the full rank where no smaller one does.
    pub fn plan(&self) -> RankPlan {
        self.found.best.map_or(RankPlan::Full, RankPlan::Uniform)
    }

    /// For people.
    pub fn text(&self) -> String {
        let Self { promise, found } = self;
        let mut text = format!(
            "searched for {} at most {}:\n",
            promise.name(),
            promise.shown(promise.limit())
        );
        for point in &found.curve {
            let kept = if Some(point.rank) == found.best {
                "  <- kept"
            } else {
                ""
            };
            text.push_str(&format!(
                "  rank {:>5}  {}{kept}\n",
                point.rank,
                promise.shown(point.loss)
            ));
        }
        if found.best.is_none() {
            text.push_str("  no smaller cache keeps the promise: the exact rewrite is written\n");
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let Self { promise, found } = self;
        let curve = found
            .curve
            .iter()
            .map(|p| json!({ "rank": p.rank, "loss": p.loss }));
        json!({
            "promise": promise.name(), "limit": promise.limit(), "rank": found.best,
            "curve": curve.collect::<Vec<_>>(),
        })
    }
}

/// Measures ranks until the smallest that keeps `promise` is found: first without reconstruction, which is quick
/// and gives a rank that is too large, then with it below that rank.
pub fn search(
    compressor: &Compressor,
    options: &RewriteOptions,
    promise: Promise,
    out: &Path,
    held_out: &Text,
) -> anyhow::Result<Searched> {
    let planned = compressor.check(options)?;
    let full = planned
        .iter()
        .map(|p| p.site.full_rank())
        .min()
        .unwrap_or(1);
    let step = match options.form.rank_step() {
        1 => (full / SEARCHED).max(1),
        step => step,
    };
    let quick = Compressor {
        reconstruction: None,
        ..compressor.clone()
    };
    let loss = |by: &Compressor, rank: usize| -> anyhow::Result<f64> {
        let options = RewriteOptions {
            ranks: RankPlan::Uniform(rank),
            ..options.clone()
        };
        let compressed = by.rewrite(out, &options, &mut bars())?;
        let (model, runtime) = (compressor.model, compressor.runtime);
        let quality = compressed.quality(model, held_out, runtime, &mut progress("reading"))?;
        compressed.discard();
        Ok(match promise {
            Promise::Perplexity(_) => quality.increase(),
            Promise::Kl(_) => quality.mean_kl,
        })
    };
    let limit = promise.limit();
    let mut found = smallest((step, full), step, limit, &mut |rank| loss(&quick, rank))?;
    if compressor.reconstruction.is_none() {
        return Ok(Searched { promise, found });
    }
    // Reconstruction takes off up to half of what is lost, never more in any model measured so far.
    let hopeless = found.curve.iter().filter(|p| p.loss > 3.0 * limit);
    let lowest = hopeless.map(|p| p.rank + step).max().unwrap_or(step);
    let highest = found.best.unwrap_or(full);
    let better = smallest((lowest, highest), step, limit, &mut |rank| {
        loss(compressor, rank)
    })?;
    found.best = better.best;
    found.curve = better.curve;
    Ok(Searched { promise, found })
}
