//! Search for a small cache that keeps a promise: the fewest bits, then the smallest rank. Every candidate is rewritten and
//! measured.

use gqa2mla_passes::factor::CacheBits;
use gqa2mla_passes::{RankPlan, RewriteOptions};

use crate::compress::bisect::smallest;
use crate::compress::compressor::{Compressor, analysis};
use crate::compress::error::CompressError;
use crate::compress::events::{Event, Observer, Stage};
use crate::compress::frontier::Point;
use crate::compress::promise::Promise;
use crate::compress::way::Way;
use crate::measure::text::Text;

/// Resolution of the search: number of candidate ranks up to the full rank.
const SEARCHED: usize = 48;

/// The result of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// The promise.
    pub promise: Promise,
    /// The measured candidates, in the order of the search.
    pub tried: Vec<Point>,
    /// The bits that were asked for; those of the model if the search chooses.
    pub bits: CacheBits,
    /// The smallest one that keeps the promise; `None` if none does, in which case the full rank is written with the bits
    /// that were asked for.
    pub best: Option<CacheSize>,
    /// The loss of KV heads as integers of the bits that were found, or of 8 if none were, if the operator of the model
    /// supports them.
    pub kept_heads: Option<Point>,
}

impl Search {
    /// The measurement of the chosen candidate.
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

/// A size of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSize {
    /// Bits of a cached number.
    pub bits: CacheBits,
    /// Latent rank; `None`: the full rank.
    pub rank: Option<usize>,
}

impl CacheSize {
    /// `options` with the bits and rank of this size.
    #[must_use]
    pub fn in_options<'f>(self, options: &RewriteOptions<'f>) -> RewriteOptions<'f> {
        RewriteOptions {
            ranks: self.rank.map_or(RankPlan::Full, RankPlan::Uniform),
            bits: self.bits,
            ..options.clone()
        }
    }
}

/// A search, which rewrites and measures one model repeatedly.
pub struct Searcher<'s, 'o> {
    /// Rewrites the model.
    pub compressor: &'s Compressor<'s>,
    /// The options of the rewrites, apart from bits and rank.
    pub options: &'s RewriteOptions<'s>,
    /// The promise.
    pub promise: Promise,
    /// The text on which the loss is measured.
    pub held_out: &'s Text,
    /// Whether the search may round the cache to integers. Otherwise it uses the bits of `options`.
    pub rounds: bool,
    /// Receives every measured candidate.
    pub observer: &'s mut Observer<'o>,
}

impl Searcher<'_, '_> {
    /// Finds a small cache that keeps the promise. Bits are chosen first, because rounding loses far less than a
    /// reduced rank with the same number of bytes: the fewest bits at which the full rank keeps the promise, then the
    /// smallest rank.
    ///
    /// # Errors
    /// [`CompressError`] if a candidate cannot be rewritten or measured.
    pub fn search(mut self) -> Result<Search, CompressError> {
        let planned = self.compressor.check(self.options)?;
        let full = planned.iter().map(|p| p.site.full_rank()).min();
        let full = full.unwrap_or(1);
        let mut tried = Vec::new();
        let bits = self.options.bits;
        let mut best = (bits == CacheBits::Model).then_some(CacheSize { bits, rank: None });
        for bits in self.fewer_bits() {
            let size = CacheSize { bits, rank: None };
            let point = self.measured(self.compressor, size, full)?;
            tried.push(point);
            if !self.keeps(point.loss) {
                break;
            }
            best = Some(size);
        }
        let Some(mut best) = best else {
            return Ok(Search {
                promise: self.promise,
                tried,
                bits,
                best: None,
                kept_heads: None,
            });
        };
        best.rank = self.smallest_rank(best.bits, full, &mut tried)?;
        let kept_heads = match self.rounds {
            true => self.kept_heads(best.bits, full)?,
            false => None,
        };
        let exact = best.rank.is_none() && best.bits == CacheBits::Model;
        Ok(Search {
            promise: self.promise,
            tried,
            bits,
            best: (!exact).then_some(best),
            kept_heads,
        })
    }

    /// The integer formats that the form supports, in descending order of bits.
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

    /// The smallest rank below `full` that keeps the promise with numbers of `bits`, if there is one. It is searched
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
        // In all measurements so far, reconstruction has at most halved the loss; the factor 3 leaves a margin.
        let hopeless = found.curve.iter().filter(|p| p.loss > 3.0 * limit);
        let lowest = hopeless.map(|p| p.rank + step).max().unwrap_or(step);
        let highest = found.best.unwrap_or(full);
        let found = smallest((lowest, highest), step, limit, &mut |rank| {
            loss(compressor, rank)
        })?;
        Ok(found.best)
    }

    /// The loss of KV heads as integers of `bits`, or of 8 bits in place of the model's own type; `None` if the model has no
    /// operator that supports them.
    fn kept_heads(&mut self, bits: CacheBits, full: usize) -> Result<Option<Point>, CompressError> {
        let bits = match bits {
            CacheBits::Model => CacheBits::Eight,
            integers => integers,
        };
        let options = RewriteOptions {
            form: Way::KeptHeads.form(bits),
            bits,
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
        let way = match options.form.keeps_heads() {
            true => Way::KeptHeads.name(),
            false => options.form.name(),
        };
        let point = Point::of(way, options.bits, rank, &quality, Some(self.promise));
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
