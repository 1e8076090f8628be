//! The rows that may be rotated.

use tract_data::prelude::TDim;

use crate::facts::Facts;

/// Most nodes between the rows before the rotation and the keys.
pub const MOST: usize = 200;

/// Rows [B, heads, T, size] that may be rotated.
pub struct Rows<'r> {
    /// Their name.
    pub value: &'r str,
    /// H or G.
    pub heads: usize,
    /// d.
    pub size: usize,
    /// P, where there is a cache.
    pub past: Option<TDim>,
}

/// T.
pub fn length_of<'f>(facts: &'f Facts, site: &Rows) -> Option<&'f TDim> {
    facts.shape(site.value)?.get(2)
}

/// How many axes the rows of `site` have in `value`: 4 for [B, G, T, d], 3 for [B, T, G*d], nothing for other values.
pub fn rows_in(facts: &Facts, site: &Rows, value: &str) -> Option<usize> {
    let (heads, size) = (site.heads as i64, site.size as i64);
    match facts.shape(value)? {
        [_, h, _, d] if h.as_i64() == Some(heads) && d.as_i64() == Some(size) => Some(4),
        [_, _, x] if x.as_i64() == Some(heads * size) => Some(3),
        _ => None,
    }
}
