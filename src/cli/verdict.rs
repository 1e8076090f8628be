//! Marks for verdicts in texts, which are replaced by colours when the text is printed.
//!
//! Texts are escaped before they reach a terminal, so that they cannot contain colour codes. A verdict is enclosed in
//! private-use characters instead. If a name contains such a character, the only effect is that the character is
//! removed or starts a colour.

use clap::builder::styling::{AnsiColor, Effects, Style};

const GOOD: char = '\u{f0001}';
const BAD: char = '\u{f0002}';
const END: char = '\u{f0003}';

/// Marks a positive verdict.
pub fn good(words: &str) -> String {
    format!("{GOOD}{words}{END}")
}

/// Marks a negative verdict.
pub fn bad(words: &str) -> String {
    format!("{BAD}{words}{END}")
}

/// `text` with verdicts in colour, or with the marks removed.
pub fn painted(text: &str, colours: bool) -> String {
    if !text.contains([GOOD, BAD]) {
        return text.to_owned();
    }
    let code = |style: Style| match colours {
        true => style.render().to_string(),
        false => String::new(),
    };
    let reset = match colours {
        true => Style::new().bold().render_reset().to_string(),
        false => String::new(),
    };
    let style = |color: AnsiColor| color.on_default().effects(Effects::BOLD);
    text.replace(GOOD, &code(style(AnsiColor::Green)))
        .replace(BAD, &code(style(AnsiColor::Red)))
        .replace(END, &reset)
}

#[cfg(test)]
mod tests {
    use super::{bad, good, painted};

    #[test]
    fn verdicts_are_coloured_or_plain() {
        let text = format!("a {} and a {}", good("passed"), bad("FAILED"));
        assert_eq!(painted(&text, false), "a passed and a FAILED");
        let coloured = painted(&text, true);
        assert!(coloured.contains("\u{1b}[32m") && coloured.contains("\u{1b}[31m"));
        assert!(coloured.ends_with("FAILED\u{1b}[0m"), "{coloured:?}");
    }
}
