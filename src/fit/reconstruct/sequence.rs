//! What one attention reads, out of what a watched model shows.

use std::collections::BTreeMap;

use gqa2mla_passes::analysis::observe::{ObservedLayer, Quantity};
use gqa2mla_passes::factor::reconstruct::Sequence;
use gqa2mla_passes::forms::CachedKeys;

use crate::fit::calibrate::{by_token, shown, unrotated};
use crate::fit::reconstruct::error::ReconstructError;
use crate::runtime::tensor::Tensor;

/// What one layer read, with tokens as the rows of keys and values; the keys are those that latents of the form are made of.
///
/// # Errors
/// [`ReconstructError::Calibrate`] when the model shows something else.
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
