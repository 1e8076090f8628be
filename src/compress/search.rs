//! Search for the smallest cache that keeps a promise, by measurements.

use gqa2mla_passes::factor::CacheBits;
use gqa2mla_passes::forms::KeptHeads;
use gqa2mla_passes::{RankPlan, RewriteOptions};

use crate::compress::bisect::smallest;
use crate::compress::compressor::{Compressor, analysis};
use crate::compress::error::CompressError;
use crate::compress::events::{Event, Observer, Stage};
use crate::compress::frontier::Point;
use crate::measure::quality::Quality;
use crate::measure::text::Text;

/// Resolution of the search: number of candidate ranks up to the full rank.
const SEARCHED: usize = 48;

/// The largest loss of a rewritten model on held-out text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Promise {
    /// Increase of perplexity relative to the original's.
    PerplexityIncrease(f64),
    /// Mean KL divergence from the original, in nats.
    Kl(f64),
}

impl Promise {
    /// The limit of the loss.
    #[must_use]
    pub fn limit(self) -> f64 {
        match self {
            Self::PerplexityIncrease(limit) | Self::Kl(limit) => limit,
        }
    }

    /// The name of the limited quantity.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PerplexityIncrease(_) => "perplexity increase",
            Self::Kl(_) => "KL",
        }
    }

    /// The loss of a model of this quality, to be compared with the limit: the largest over all ranges of positions
    /// with enough tokens. For a promise on perplexity, also the increase that corresponds to the KL.
    #[must_use]
    pub fn loss(self, quality: &Quality) -> f64 {
        match self {
            Self::PerplexityIncrease(_) => quality.promised_increase(),
            Self::Kl(_) => quality.worst_kl(),
        }
    }

    /// Whether a model of this quality keeps the promise.
    #[must_use]
    pub fn is_kept(self, quality: &Quality) -> bool {
        self.loss(quality) <= self.limit()
    }
}

/// The result of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// The promise.
    pub promise: Promise,
    /// Every size that was measured, in the order of the search.
    pub tried: Vec<Point>,
    /// The smallest of them that keeps the promise; `None`: the cache stays as it is, which is exact.
    pub best: Option<CacheSize>,
    /// What the heads as they are lose as 8-bit integers, where the model's operator can hold them.
    pub kept_heads: Option<Point>,
}

impl Search {
    /// What was measured of the size that is kept.
    #[must_use]
    pub fn best_point(&self) -> Option<&Point> {
        let best = self.best?;
        let tried = self.tried.iter();
        let mut of_its_bits = tried.filter(|p| p.bits == best.bits.number());
        match best.rank {
            Some(rank) => of_its_bits.rfind(|p| p.rank == rank),
            None => of_its_bits.max_by_key(|p| p.rank),
        }
    }
}

/// A size of the cache that a search can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSize {
    /// Bits of a cached number.
    pub bits: CacheBits,
    /// Latent rank; `None`: the full rank.
    pub rank: Option<usize>,
}

impl CacheSize {
    /// The `options` of a rewrite to this size.
    #[must_use]
    pub fn in_options<'f>(self, options: &RewriteOptions<'f>) -> RewriteOptions<'f> {
        RewriteOptions {
            ranks: self.rank.map_or(RankPlan::Full, RankPlan::Uniform),
            bits: self.bits,
            ..options.clone()
        }
    }
}

/// A search: the same model is rewritten and measured again and again.
pub struct Searcher<'s, 'o> {
    /// What rewrites the model.
    pub compressor: &'s Compressor<'s>,
    /// The other options of its rewrites.
    pub options: &'s RewriteOptions<'s>,
    /// What is to be kept.
    pub promise: Promise,
    /// The text that it is measured on.
    pub held_out: &'s Text,
    /// Whether the cache may be rounded to integers. If not, it holds numbers of the bits of `options`.
    pub rounds: bool,
    /// Hears of every size that was measured.
    pub observer: &'s mut Observer<'o>,
}

impl Searcher<'_, '_> {
    /// Finds the smallest cache that keeps the promise. Bits come first, as rounding costs far less than a rank of as many
    /// bytes: the fewest at which the full rank keeps the promise are taken, and then the smallest rank.
    ///
    /// # Errors
    /// [`CompressError`].
    pub fn search(mut self) -> Result<Search, CompressError> {
        let planned = self.compressor.check(self.options)?;
        let full = planned.iter().map(|p| p.site.full_rank()).min();
        let full = full.unwrap_or(1);
        let mut tried = Vec::new();
        let mut best = CacheSize {
            bits: self.options.bits,
            rank: None,
        };
        let kept_heads = match self.rounds {
            true => self.kept_heads(full)?,
            false => None,
        };
        for bits in self.fewer_bits() {
            let size = CacheSize { bits, rank: None };
            let point = self.measured(self.compressor, size, full)?;
            tried.push(point);
            if !self.keeps(point.loss) {
                break;
            }
            best = size;
        }
        let rank = self.smallest_rank(best.bits, full, &mut tried)?;
        best.rank = rank;
        let exact = best.rank.is_none() && best.bits == CacheBits::Model;
        Ok(Search {
            promise: self.promise,
            tried,
            best: (!exact).then_some(best),
            kept_heads,
        })
    }

    /// The integers that the form can cache, the most bits first.
    fn fewer_bits(&self) -> Vec<CacheBits> {
        let asked = self.options.bits;
        let integers = [CacheBits::Eight, CacheBits::Six, CacheBits::Four].into_iter();
        let wanted = integers.filter(|&bits| match asked {
            CacheBits::Model => self.rounds,
            asked => bits == asked,
        });
        let can = |bits: &CacheBits| {
            let options = RewriteOptions {
                bits: *bits,
                ranks: RankPlan::Full,
                ..self.options.clone()
            };
            self.compressor.check(&options).is_ok()
        };
        wanted.filter(can).collect()
    }

    /// The smallest rank of at most `full` that keeps the promise with numbers of `bits`, if a smaller one than `full` does:
    /// first without reconstruction, which is fast and gives an upper bound, then with reconstruction below this rank.
    fn smallest_rank(
        &mut self,
        bits: CacheBits,
        full: usize,
        tried: &mut Vec<Point>,
    ) -> Result<Option<usize>, CompressError> {
        let step = match self.options.form.rank_step() {
            1 => (full / SEARCHED).max(1),
            step => step,
        };
        let limit = self.promise.limit();
        let compressor = self.compressor;
        let mut loss = |by: &Compressor, rank: usize| {
            let rank = Some(rank);
            let point = self.measured(by, CacheSize { bits, rank }, full)?;
            tried.push(point);
            Ok::<_, CompressError>(point.loss)
        };
        let quick = compressor.without_reconstruction();
        let found = smallest((step, full), step, limit, &mut |rank| loss(&quick, rank))?;
        if compressor.reconstruction.is_none() {
            return Ok(found.best);
        }
        // Reconstruction has at most halved the loss of all models measured so far; 3 leaves a margin.
        let hopeless = found.curve.iter().filter(|p| p.loss > 3.0 * limit);
        let lowest = hopeless.map(|p| p.rank + step).max().unwrap_or(step);
        let highest = found.best.unwrap_or(full);
        let found = smallest((lowest, highest), step, limit, &mut |rank| {
            loss(compressor, rank)
        })?;
        Ok(found.best)
    }

    /// What the heads as they are lose as 8-bit integers; `None` where the model has no operator that holds them.
    fn kept_heads(&mut self, full: usize) -> Result<Option<Point>, CompressError> {
        let options = RewriteOptions {
            form: &KeptHeads,
            bits: CacheBits::Eight,
            ranks: RankPlan::Full,
            ..self.options.clone()
        };
        let analysis = analysis(self.compressor.model, &options)?;
        let compressor = Compressor {
            analysis: &analysis,
            ..self.compressor.without_reconstruction()
        };
        if compressor.check(&options).is_err() {
            return Ok(None);
        }
        self.point(&compressor, &options, full).map(Some)
    }

    fn measured(
        &mut self,
        by: &Compressor,
        size: CacheSize,
        full: usize,
    ) -> Result<Point, CompressError> {
        let options = size.in_options(self.options);
        self.point(by, &options, size.rank.unwrap_or(full))
    }

    fn point(
        &mut self,
        by: &Compressor,
        options: &RewriteOptions,
        rank: usize,
    ) -> Result<Point, CompressError> {
        let (_, quality) = by.measure(options, self.held_out, self.observer)?;
        let loss = self.promise.loss(&quality);
        let point = Point::of(options.form.name(), options.bits, rank, &quality, loss);
        (self.observer)(Event {
            stage: Stage::Tried(point),
            done: 1,
            total: 1,
        });
        Ok(point)
    }

    fn keeps(&self, loss: f64) -> bool {
        loss <= self.promise.limit()
    }
}
