//! What a compression would make of a model, told without computing, running or writing anything.

use std::path::Path;

use gqa2mla_passes::factor::CacheBits;
use gqa2mla_passes::onnx::stored::element_bits;
use gqa2mla_passes::pipeline::Planned;

use crate::compress::compressor::{Compressor, Destination};
use crate::compress::error::CompressError;
use crate::compress::prepared::Prepared;
use crate::compress::promise::Promise;
use crate::compress::request::Request;
use crate::files::load::LoadedModel;
use crate::files::save::DataFile;
use crate::fit::factors::Factorization;
use crate::fit::reach::Reach;

/// What a compression would make of a model.
#[derive(Debug, Clone)]
pub struct Foreseen {
    /// The attentions that it would rewrite, with the ranks that are asked for; with a promise, the largest.
    pub planned: Vec<Planned>,
    /// Number of attentions that would stay as they are.
    pub left: usize,
    /// Bits of a cached number; with a promise, the most.
    pub bits: CacheBits,
    /// The promise whose search would choose bits and ranks.
    pub promise: Option<Promise>,
    /// Whether the logits would stay the same; with a promise it is not known.
    pub is_exact: bool,
    /// Bytes a token in the caches of these attentions.
    pub bytes_before: u64,
    /// The same after the rewrite; with a promise, the most.
    pub bytes_after: u64,
}

/// Checks all that a compression of `model` checks before it computes, and tells what it would do.
///
/// # Errors
/// [`CompressError`], the same as of [`crate::compress::run::compress`].
pub fn foresee(model: &LoadedModel, request: &Request) -> Result<Foreseen, CompressError> {
    let prepared = Prepared::of(model, request)?;
    let factorization = request.factorization();
    let reads = factorization != Factorization::Weights;
    let statistics = request.statistics.as_ref().filter(|_| reads);
    if reads && statistics.is_none() && prepared.texts.fitted.is_none() {
        return Err(CompressError::NoText);
    }
    request.check_reach(statistics.map(Reach::of))?;
    let nowhere = Destination {
        out: Path::new(""),
        data: DataFile::Inline,
        work: None,
    };
    let compressor = Compressor {
        model,
        analysis: &prepared.analysis,
        destination: &nowhere,
        statistics,
        factorization,
        reconstruction: None,
        runtime: &request.runtime,
    };
    let options = &prepared.options;
    let planned = compressor.check(options)?;
    let narrow = planned.iter().any(|p| options.form.loses(p.ranks, &p.site));
    let cached = || planned.iter().filter(|p| p.site.has_own_cache());
    let before = cached().map(|p| bits_of(p.site.cached_type, p.site.cached_numbers()));
    let after = cached().map(|p| {
        let elements = options.bits.elements(p.ranks.key) + options.bits.elements(p.ranks.value);
        match options.bits {
            CacheBits::Model => bits_of(p.site.cached_type, elements),
            // Elements of integers are bytes.
            _ => 8 * elements as u64,
        }
    });
    Ok(Foreseen {
        left: prepared.analysis.rejects.len()
            + prepared.analysis.recognised().saturating_sub(planned.len()),
        bits: options.bits,
        promise: request.promise,
        is_exact: !narrow && request.is_exact(),
        bytes_before: before.sum::<u64>() / 8,
        bytes_after: after.sum::<u64>() / 8,
        planned,
    })
}

fn bits_of(elem_type: i32, count: usize) -> u64 {
    u64::from(element_bits(elem_type).unwrap_or(0)) * count as u64
}
