//! The sizes of the cache and their losses as lines of at most 60 columns.

use crate::cli::verdict::{bad, good};
use crate::compress::frontier::Point;
use crate::compress::promise::BrokenBy;
use crate::compress::way::Way;
use crate::report::{change, measured, percent, short};

/// The lines of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Ways {
    /// Whether the loss was measured in several ranges of positions. The worst of one range is the loss itself.
    pub by_position: bool,
}

impl Ways {
    /// The header.
    pub fn header(self) -> String {
        let worst = if self.by_position { "   worst" } else { "" };
        let way = "way";
        format!("{way:<10} bits  rank    bytes  perpl.{worst}     KL  top-1")
    }

    /// The line of a method. A name that does not fit its column is on a line of its own.
    pub fn line(self, point: &Point) -> String {
        let way = match point.way.len() > 10 {
            true => format!("{}\n{:10}", point.way, ""),
            false => format!("{:10}", point.way),
        };
        let rank = point.rank.to_string();
        let numbers = numbers(point, &rank, self.by_position);
        format!("{way} {numbers} {:>6}", percent(point.top1))
    }
}

fn numbers(point: &Point, rank: &str, with_worst: bool) -> String {
    let bits = point.bits.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let worst = match with_worst {
        true => format!(" {:>7}", change(point.worst_perplexity_increase)),
        false => String::new(),
    };
    format!(
        "{bits:>4} {rank:>5} {:>8} {:>7}{worst} {:>6}",
        measured(point.bytes),
        change(point.perplexity_increase),
        short(point.kl),
    )
}

/// The lines of a search as it goes on.
#[derive(Default)]
pub struct Rows {
    begun: bool,
}

impl Rows {
    /// The line of the next size, with the header before the first one.
    pub fn next(&mut self, point: &Point) -> String {
        let line = searched(point, false);
        match std::mem::replace(&mut self.begun, true) {
            true => line,
            false => format!("{}\n{line}", searched_header()),
        }
    }
}

/// The header of the lines of a search.
pub fn searched_header() -> String {
    "bits  rank    bytes  perpl.   worst     KL  promise".to_owned()
}

/// The line of a size that a search has measured, with whether it keeps the promise. `chosen`: it is the result of the
/// search.
pub fn searched(point: &Point, chosen: bool) -> String {
    let rank = match point.way == Way::KeptHeads.name() {
        true => "heads".to_owned(),
        false => point.rank.to_string(),
    };
    let verdict = match (point.broken_by, chosen) {
        (
            BrokenBy {
                perplexity: true,
                kl: true,
            },
            _,
        ) => bad("fails: both"),
        (
            BrokenBy {
                perplexity: true, ..
            },
            _,
        ) => bad("fails: perpl."),
        (BrokenBy { kl: true, .. }, _) => bad("fails: KL"),
        (_, true) => good("kept, chosen"),
        (_, false) => good("kept"),
    };
    format!("{}  {verdict}", numbers(point, &rank, true))
}

#[cfg(test)]
mod tests {
    use super::{Point, Ways, searched, searched_header};
    use crate::cli::verdict::painted;
    use crate::compress::promise::BrokenBy;
    use crate::compress::way::Way;

    fn point(way: &'static str, broken_by: BrokenBy) -> Point {
        Point {
            way,
            bits: Some(8),
            rank: 192,
            bytes: 46_080.0,
            perplexity_increase: 0.159,
            worst_perplexity_increase: 0.2,
            kl: 0.0123,
            top1: 0.987,
            loss: 0.2,
            broken_by,
        }
    }

    #[test]
    fn lines_fit_60_columns_and_stand_below_their_header() {
        let both = BrokenBy {
            perplexity: true,
            kl: true,
        };
        for way in ["plain", "reconstructed", "expanded-reconstructed"] {
            for by_position in [true, false] {
                let ways = Ways { by_position };
                let text = ways.line(&point(way, both));
                assert!(text.lines().all(|line| line.len() <= 60), "{text}");
                assert_eq!(text.lines().last().map(str::len), Some(ways.header().len()));
                assert_eq!(ways.header().contains("worst"), by_position);
            }
        }
        let line = painted(&searched(&point("absorbed", both), true), false);
        assert!(
            line.len() <= 60 && line.ends_with("  fails: both"),
            "{line}"
        );
        let column = searched_header().find("promise");
        assert_eq!(line.find("fails"), column, "{line}");
        let heads = point(Way::KeptHeads.name(), BrokenBy::default());
        let heads = painted(&searched(&heads, false), false);
        assert!(
            heads.contains(" heads ") && heads.ends_with("  kept"),
            "{heads}"
        );
    }
}
