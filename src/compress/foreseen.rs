//! A dry run: what a compression would do, without computing factors, running a model or writing a file.

use std::path::{Path, PathBuf};

use gqa2mla_passes::factor::CacheBits;
use gqa2mla_passes::onnx::stored::element_bits;
use gqa2mla_passes::pipeline::Planned;

use crate::compress::blank::without_weights;
use crate::compress::compressor::{Compressor, Destination, analysis};
use crate::compress::error::CompressError;
use crate::compress::prepared::{Prepared, options};
use crate::compress::promise::Promise;
use crate::compress::request::Request;
use crate::files::data::has_data;
use crate::files::load::LoadedModel;
use crate::files::save::DataFile;
use crate::fit::factors::Factorization;

/// The expected result of a compression.
#[derive(Debug, Clone)]
pub struct Foreseen {
    /// The attentions that would be rewritten, with their ranks; for a promise, the largest ranks of the search.
    pub planned: Vec<Planned>,
    /// Number of attentions that would not be rewritten.
    pub left: usize,
    /// Whether the heads are cached without a latent.
    pub keeps_heads: bool,
    /// Bits of a cached number; for a promise, the most bits of the search.
    pub bits: CacheBits,
    /// The promise, if bits and ranks would be found by a search.
    pub promise: Option<Promise>,
    /// Whether the rewrite would be exact; false for a promise, because the result of its search is not known.
    pub is_exact: bool,
    /// Bytes per token of the caches of these attentions before the rewrite.
    pub bytes_before: u64,
    /// Bytes per token after the rewrite; for a promise, the most.
    pub bytes_after: u64,
    /// Whether the model would be written with a data file. Small models are one file.
    pub has_data: bool,
}

/// Checks `request` for `model` like a compression, and returns what it would do.
///
/// # Errors
/// The [`CompressError`] with which [`crate::compress::run::compress`] would refuse the request.
pub fn foresee(model: &LoadedModel, request: &Request) -> Result<Foreseen, CompressError> {
    let prepared = Prepared::of(model, request)?;
    let factorization = request.factorization();
    let reads = factorization != Factorization::Weights;
    let statistics = request.statistics.as_ref().filter(|_| reads);
    if reads && statistics.is_none() && prepared.texts.fitted.is_none() {
        return Err(CompressError::NoText);
    }
    let nowhere = Destination {
        out: Path::new(""),
        data: DataFile::Inline,
        work: None,
        checkpoint: PathBuf::new(),
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
    let mut rewritten = without_weights(model, &prepared.analysis, options, factorization)?;
    let narrow = planned.iter().any(|p| options.form.loses(p.ranks, &p.site));
    let cached = || planned.iter().filter(|p| p.site.has_own_cache());
    let before = cached().map(|p| bits_of(p.site.cached_type, p.site.cached_numbers()));
    let after = cached().map(|p| {
        let form = options.form;
        let elements = form.cached_elements(options.bits, p.ranks, &p.site);
        match options.bits {
            CacheBits::Model => bits_of(p.site.cached_type, elements),
            // An element of an integer cache is one byte.
            _ => 8 * elements as u64,
        }
    });
    Ok(Foreseen {
        left: prepared.analysis.rejects.len()
            + prepared.analysis.recognised().saturating_sub(planned.len()),
        keeps_heads: options.form.keeps_heads(),
        bits: options.bits,
        promise: request.promise,
        is_exact: !narrow && request.is_exact(),
        bytes_before: before.sum::<u64>() / 8,
        bytes_after: after.sum::<u64>() / 8,
        has_data: has_data(&mut rewritten.model.proto),
        planned,
    })
}

/// The model that a compression would write, but for the numbers of its new weights. No text is read.
///
/// # Errors
/// A [`CompressError`] with which [`crate::compress::run::compress`] would refuse the request.
pub fn foresee_graph(model: &LoadedModel, request: &Request) -> Result<LoadedModel, CompressError> {
    let (_, options) = options(model, request)?;
    let analysis = analysis(model, &options)?;
    let factorization = request.factorization();
    Ok(without_weights(model, &analysis, &options, factorization)?)
}

fn bits_of(elem_type: i32, count: usize) -> u64 {
    u64::from(element_bits(elem_type).unwrap_or(0)) * count as u64
}
