//! Verdicts in texts: their colour is decided where the text is printed.
//!
//! Texts are escaped as a whole before they reach a terminal, so that a verdict cannot hold the codes of its colour. It is marked
//! by characters for private use instead; a name with such a character would lose it, or be coloured, and nothing else.

use clap::builder::styling::{AnsiColor, Effects, Style};

const GOOD: char = '\u{f0001}';
const BAD: char = '\u{f0002}';
const END: char = '\u{f0003}';

/// A verdict that a reader hopes for.
pub fn good(words: &str) -> String {
    format!("{GOOD}{words}{END}")
}

/// A verdict that a reader has to see.
pub fn bad(words: &str) -> String {
    format!("{BAD}{words}{END}")
}

/// The text with its verdicts in colour, or without any marks.
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
