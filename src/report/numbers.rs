//! Formatting of numbers.

/// `1234567` as `1,234,567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A measured number of bytes: grouped if it is an integer, else with one decimal.
#[must_use]
pub fn measured(number: f64) -> String {
    match number.fract() == 0.0 && (0.0..1e15).contains(&number) {
        true => grouped(number as u64),
        false => format!("{number:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{grouped, measured};

    #[test]
    fn long_numbers_are_grouped() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(46_080), "46,080");
        assert_eq!(measured(46_080.0), "46,080");
        assert_eq!(measured(46_080.25), "46080.2");
    }
}
