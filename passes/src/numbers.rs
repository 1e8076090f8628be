//! Numbers of things in texts.

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

/// `1 file`, `2 files`: a number of things, of which `one` is one.
#[must_use]
pub fn counted(number: usize, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        several => format!("{} {one}s", grouped(several as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::{counted, grouped};

    #[test]
    fn long_numbers_are_grouped_and_one_thing_is_singular() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(46_080), "46,080");
        assert_eq!(counted(0, "layer"), "0 layers");
        assert_eq!(counted(1, "layer"), "1 layer");
        assert_eq!(counted(1200, "layer"), "1,200 layers");
    }
}
