//! What a cache of one size loses: a point of the frontier of bytes and loss.

use gqa2mla_passes::factor::CacheBits;
use serde::Serialize;

use crate::compress::promise::{BrokenBy, Promise};
use crate::measure::quality::Quality;

/// A measured size of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// The name of the form or of the way that it is made in.
    pub way: &'static str,
    /// Bits of a cached number; `None` for the model's own type.
    pub bits: Option<u32>,
    /// Latent rank.
    pub rank: usize,
    /// Bytes a token in all caches, as measured.
    pub bytes: f64,
    /// Increase of perplexity, relative to the original's.
    pub perplexity_increase: f64,
    /// The largest increase over ranges of positions.
    pub worst_perplexity_increase: f64,
    /// Mean KL from the original, in nats.
    pub kl: f64,
    /// Share of positions at which both models have the same most likely token.
    pub top1: f64,
    /// What is compared with the limit of a promise; without one, the mean KL.
    pub loss: f64,
    /// What breaks the promise of a search; nothing without one.
    pub broken_by: BrokenBy,
}

impl Point {
    /// The size that is made in `way`, with latents of `rank` and numbers of `bits`, whose quality is `quality`; `promise` is
    /// that of the search, if there is one.
    #[must_use]
    pub fn of(
        way: &'static str,
        bits: CacheBits,
        rank: usize,
        quality: &Quality,
        promise: Option<Promise>,
    ) -> Self {
        Self {
            way,
            bits: bits.number(),
            rank,
            bytes: quality.rewritten_cache_bytes,
            perplexity_increase: quality.increase(),
            worst_perplexity_increase: quality.worst_increase(),
            kl: quality.mean_kl,
            top1: quality.top1_agreement,
            loss: promise.map_or(quality.mean_kl, |promise| promise.loss(quality)),
            broken_by: promise.map_or_else(BrokenBy::default, |p| p.broken_by(quality)),
        }
    }
}
