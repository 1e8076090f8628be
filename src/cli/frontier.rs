//! Sizes of the cache and what they lose, a line for each.

use crate::compress::frontier::Point;
use crate::report::measured;

/// What stands above the lines.
pub const HEADER: &str =
    "  way                     bits  rank  bytes a token  perplexity  worst bin      KL  top-1";

/// The line of a size.
pub fn line(point: &Point) -> String {
    let bits = point.bits.map_or_else(|| "-".to_owned(), |n| n.to_string());
    format!(
        "  {:<22}  {bits:>4}  {:>4}  {:>13}  {:>+9.2}%  {:>+8.2}%  {:>6.4}  {:>5.3}",
        point.way,
        point.rank,
        measured(point.bytes),
        100.0 * point.perplexity_increase,
        100.0 * point.worst_perplexity_increase,
        point.kl,
        point.top1
    )
}
