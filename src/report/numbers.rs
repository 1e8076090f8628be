//! Formatting of measured numbers.

use gqa2mla_passes::numbers::grouped;

/// A measured number of bytes: grouped if it is an integer, else with one decimal.
#[must_use]
pub fn measured(number: f64) -> String {
    if !(0.0..1e15).contains(&number) {
        return format!("{number:.1}");
    }
    let tenths = (number * 10.0).round() as u64;
    match number.fract() == 0.0 {
        true => grouped(number as u64),
        false => format!("{}.{}", grouped(tenths / 10), tenths % 10),
    }
}

/// A change as a share of what was before: `+4.60%`. What rounds to zero has no minus.
#[must_use]
pub fn change(share: f64) -> String {
    let hundredths = (10_000.0 * share).round();
    // Adding 0 to a negative zero makes it a positive one.
    format!("{:+.2}%", hundredths / 100.0 + 0.0)
}

#[cfg(test)]
mod tests {
    use super::{change, measured};

    #[test]
    fn measured_bytes_have_a_decimal_where_they_need_one() {
        assert_eq!(measured(46_080.0), "46,080");
        assert_eq!(measured(46_080.25), "46,080.3");
    }

    #[test]
    fn a_change_of_nothing_has_no_minus() {
        assert_eq!(change(-1e-9), "+0.00%");
        assert_eq!(change(-0.000_04), "+0.00%");
        assert_eq!(change(-0.001), "-0.10%");
        assert_eq!(change(0.046), "+4.60%");
        assert_eq!(change(f64::NAN), "NaN%");
    }
}
