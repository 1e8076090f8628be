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

/// A loss or a relative error with four decimals. What rounds to zero has no minus.
#[must_use]
pub fn short(number: f64) -> String {
    format!("{:.4}", without_minus(number, 10_000.0))
}

/// A KL or a difference of logits: with four decimals, or in powers of ten where fewer than two digits would be left.
#[must_use]
pub fn small(number: f64) -> String {
    match number.abs() {
        0.0 | 1e-3.. => short(number),
        _ => format!("{number:.1e}"),
    }
}

/// A share of all, such as an agreement: `97.5%`.
#[must_use]
pub fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

/// A change as a share of what was before: `+4.60%`, or as a factor from a doubling on: `x736`. What rounds to zero has
/// no minus. At most 7 characters up to a factor of 100,000, and then 6 up to 1e99.
#[must_use]
pub fn change(share: f64) -> String {
    let factor = 1.0 + share;
    match factor {
        1e5.. => format!("x{factor:.0e}"),
        100.0.. => format!("x{factor:.0}"),
        10.0.. => format!("x{factor:.1}"),
        // Here a percentage would be wider than the columns of tables.
        2.0.. => format!("x{factor:.2}"),
        _ => format!("{:+.2}%", without_minus(100.0 * share, 100.0)),
    }
}

/// `number`, rounded to a multiple of 1 / `parts`. A negative zero is made positive.
fn without_minus(number: f64, parts: f64) -> f64 {
    match (parts * number).round() {
        0.0 => 0.0,
        _ => number,
    }
}

/// A number of bytes as text: `45.0 kB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::{change, measured, percent, short, small};

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
        assert_eq!(short(-0.000_04), "0.0000");
        assert_eq!(short(-0.000_06), "-0.0001");
        assert_eq!(short(0.25), "0.2500");
        assert_eq!(small(0.155), "0.1550");
        assert_eq!(small(3.21e-13), "3.2e-13");
        assert_eq!(small(0.0), "0.0000");
        assert_eq!(percent(0.9754), "97.5%");
        assert_eq!(short(f64::NAN), "NaN");
    }

    #[test]
    fn a_huge_change_is_a_factor_that_fits_its_column() {
        assert_eq!(change(0.99), "+99.00%");
        assert_eq!(change(1.5), "x2.50");
        assert_eq!(change(735.4233), "x736");
        for power in 0..99 {
            let text = change(10_f64.powi(power));
            assert!(text.len() <= 7, "{text}");
        }
        assert_eq!(change(f64::INFINITY), "xinf");
    }
}
