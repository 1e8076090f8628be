//! The keys or queries whose rotation is to be recognised.

use tract_data::prelude::TDim;

use crate::facts::Facts;

/// Largest number of nodes of a rotation.
pub const MOST: usize = 200;

/// Keys or queries [B, heads, T, size].
pub struct RotatedRows<'r> {
    /// The name of the value.
    pub value: &'r str,
    /// H or G.
    pub heads: usize,
    /// d.
    pub size: usize,
    /// P, the past length, if there is a cache.
    pub past: Option<TDim>,
}

/// T.
pub fn length_of<'f>(facts: &'f Facts, site: &RotatedRows) -> Option<&'f TDim> {
    facts.shape(site.value)?.get(2)
}

/// The rank of `value`, if it has the shape of the rows `site`: 4 for [B, heads, T, size], 3 for [B, T, heads*size].
pub fn rows_in(facts: &Facts, site: &RotatedRows, value: &str) -> Option<usize> {
    let (heads, size) = (site.heads as i64, site.size as i64);
    match facts.shape(value)? {
        [_, h, _, d] if h.as_i64() == Some(heads) && d.as_i64() == Some(size) => Some(4),
        [_, _, x] if x.as_i64() == Some(heads * size) => Some(3),
        _ => None,
    }
}
