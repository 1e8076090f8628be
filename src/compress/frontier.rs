//! The loss at one size of the cache: a point of the frontier of bytes and loss.

use gqa2mla_passes::factor::CacheBits;
use serde::Serialize;

use crate::compress::promise::{BrokenBy, Promise};
use crate::measure::quality::Quality;

/// A measured size of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// The name of the form or, in a comparison, of the method ([`crate::compress::way::Way`]).
    pub way: &'static str,
    /// Bits of a cached number; `None` for the model's own type.
    pub bits: Option<u32>,
    /// Latent rank.
    pub rank: usize,
    /// Bytes per token of all caches, measured from the model's outputs.
    pub bytes: f64,
    /// Increase of perplexity, relative to the original's.
    pub perplexity_increase: f64,
    /// The largest increase of perplexity over all ranges of positions.
    pub worst_perplexity_increase: f64,
    /// Mean KL divergence from the original, in nats.
    pub kl: f64,
    /// Share of positions at which both models have the same most likely token.
    pub top1: f64,
    /// The loss that is compared with the limit of the promise; without a promise, the mean KL.
    pub loss: f64,
    /// Which quantities exceed the limit of the promise; none without a promise.
    pub broken_by: BrokenBy,
}

impl Point {
    /// The point of a model with latents of rank `rank` and numbers of `bits`, made by the method or form `way`, with
    /// the measured `quality`. `promise` is that of the search, if there is one.
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
