//! Parsers of option values: shares, losses and paths.

use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};

use crate::measure::npy;
use crate::runtime::given::{GivenInput, GivenValue};

/// Parses a share: `0.5` or `50%`. A number above 1 without a percent sign is refused, because the sign was probably
/// forgotten.
pub fn share(text: &str) -> Result<f64, String> {
    match number(text)? {
        (value, false) if value > 1.0 => Err(format!(
            "a share is at most 1: {text}%? Write {text}% for a percentage, or a share such as 0.5"
        )),
        (value, _) => Ok(value),
    }
}

/// Parses the value of a model input: `NAME=2.5`, or `NAME=FILE.npy`.
pub fn given(text: &str) -> Result<GivenInput, String> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or("expected NAME=VALUE or NAME=FILE.npy")?;
    let value = match value.parse::<f64>() {
        Ok(number) => GivenValue::Everywhere(number),
        Err(_) if value.ends_with(".npy") => {
            let file = std::fs::read(value).map_err(|error| format!("{value}: {error}"))?;
            let (shape, values) =
                npy::numbers(&file).map_err(|error| format!("{value}: {error}"))?;
            GivenValue::Tensor { shape, values }
        }
        Err(_) => return Err(format!("{value} is neither a number nor a .npy file")),
    };
    Ok(GivenInput {
        name: name.to_owned(),
        value,
    })
}

/// Parses an increase: `2%` or `0.02`, not negative. A number of 1 or more without a percent sign is refused, because
/// the sign was probably forgotten.
pub fn increase(text: &str) -> Result<f64, String> {
    match number(text)? {
        (value, _) if value < 0.0 => Err("an increase is not negative".to_owned()),
        (value, false) if value >= 1.0 => Err(format!(
            "{text} would be {}%: write {text}% for a percentage, or a share such as 0.02",
            100.0 * value
        )),
        (value, _) => Ok(value),
    }
}

/// Parses the number of tokens of a sequence, which is at least 2, because a prediction needs two tokens.
pub fn length(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(tokens) if tokens >= 2 => Ok(tokens),
        _ => Err("expected a number of tokens, 2 or more".to_owned()),
    }
}

/// Parses a ratio that is not negative.
pub fn ratio(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a ratio such as 1e-3, not negative".to_owned()),
    }
}

/// Parses a loss in nats that is not negative.
pub fn nats(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a number of nats such as 0.05, not negative".to_owned()),
    }
}

/// The parsed number, and whether it had a percent sign.
fn number(text: &str) -> Result<(f64, bool), String> {
    let (number, unit, percentage) = match text.strip_suffix('%') {
        Some(number) => (number, 0.01, true),
        None => (text, 1.0, false),
    };
    match number.trim().parse::<f64>() {
        Ok(value) if value.is_finite() => Ok((value * unit, percentage)),
        _ => Err("expected a number such as 0.02 or 2%".to_owned()),
    }
}

/// Parses an output path. `-` (standard output) is refused, because outputs are written atomically.
pub fn output() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str() == "-" {
        true => Err("standard output cannot hold it: give a path"),
        false => Ok(path),
    })
}

#[cfg(test)]
mod tests {
    use super::{increase, nats, share};

    #[test]
    fn a_share_is_a_number_or_a_percentage() {
        assert_eq!(share("0.5"), Ok(0.5));
        assert_eq!(share("50%"), Ok(0.5));
        assert!(share("half").is_err() && share("inf").is_err());
        assert!(share("50").is_err_and(|said| said.contains("50%?")));
        assert_eq!((share("1"), share("500%")), (Ok(1.0), Ok(5.0)));
    }

    #[test]
    fn an_increase_of_several_hundred_percent_has_to_be_meant() {
        assert_eq!(increase("2%"), Ok(0.02));
        assert_eq!(increase("0.02"), Ok(0.02));
        assert_eq!(increase("500%"), Ok(5.0));
        assert!(increase("5").is_err_and(|said| said.contains("write 5%")));
        assert!(increase("-2%").is_err());
    }

    #[test]
    fn nats_are_no_percentages() {
        assert_eq!(nats("0.05"), Ok(0.05));
        assert!(nats("5%").is_err() && nats("-1").is_err());
    }
}
