//! Escaping of control characters in output: names come from untrusted files, and a terminal would interpret them.

use std::borrow::Cow;
use std::fmt::Write;

/// The text with all control characters except line ends and tabs escaped as in Rust, such as `\u{1b}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    with(text, |escaped, c| {
        let _ = write!(escaped, "\\u{{{:x}}}", c as u32);
    })
}

/// A name within a line: line ends and tabs are escaped too, so that the name cannot fake further lines.
pub fn in_line(name: &str) -> String {
    let shown = name.replace('\n', "\\n").replace('\t', "\\t");
    escaped(&shown).into_owned()
}

/// JSON text in which control characters are escaped that JSON allows in strings and terminals interpret.
pub fn escaped_json(text: &str) -> Cow<'_, str> {
    with(text, |escaped, c| {
        let _ = write!(escaped, "\\u{:04x}", c as u32);
    })
}

fn with(text: &str, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_obeyed(c) {
            true => escape(&mut escaped, c),
            false => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// Whether a terminal interprets `c`: control characters, and marks that change the direction of text.
fn is_obeyed(c: char) -> bool {
    let reorders = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && !matches!(c, '\n' | '\t')) || reorders
}

#[cfg(test)]
mod tests {
    use super::{escaped, escaped_json, in_line};

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        assert_eq!(escaped("a\tb\u{e9}\n"), "a\tb\u{e9}\n");
        assert_eq!(escaped("\u{1b}[31m\r\u{7f}"), "\\u{1b}[31m\\u{d}\\u{7f}");
        assert_eq!(escaped("\u{9b}2J\u{202e}"), "\\u{9b}2J\\u{202e}");
        assert_eq!(in_line("a\nb\u{1b}"), "a\\nb\\u{1b}");
        assert_eq!(escaped_json("\"\u{9b}\""), "\"\\u009b\"");
    }
}
