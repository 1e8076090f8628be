//! The inputs of one attention, from the outputs of an instrumented model.

use std::collections::BTreeMap;

use gqa2mla_passes::analysis::observe::{ObservedLayer, Quantity};
use gqa2mla_passes::factor::reconstruct::Sequence;
use gqa2mla_passes::forms::CachedKeys;

use crate::fit::calibrate::{by_token, shown, unrotated};
use crate::fit::reconstruct::error::ReconstructError;
use crate::runtime::tensor::Tensor;

/// The queries, keys and values of one layer, keys and values with tokens as rows; keys are rotated or unrotated as
/// `cached` says.
///
/// # Errors
/// [`ReconstructError::Calibrate`] if an output is missing or has another shape.
pub fn sequence(
    layer: &ObservedLayer,
    cached: CachedKeys,
    outputs: &BTreeMap<String, Tensor>,
    length: usize,
) -> Result<Sequence, ReconstructError> {
    let site = &layer.site;
    let get = |quantity, heads, size| shown(layer, outputs, quantity, &[heads, length, size]);
    let queries = get(Quantity::Query, site.heads, site.key.size)?.into_owned();
    let values = get(Quantity::Value, site.kv_heads, site.value.size)?;
    let keys = match cached {
        CachedKeys::Unrotated => unrotated(layer, outputs, length)?,
        _ => None,
    };
    let keys = match keys {
        Some(keys) => keys,
        None => {
            let keys = get(Quantity::Key, site.kv_heads, site.key.size)?;
            by_token(&keys, site.kv_heads, length, site.key.size)
        }
    };
    Ok(Sequence {
        length,
        queries,
        keys,
        values: by_token(&values, site.kv_heads, length, site.value.size),
    })
}
