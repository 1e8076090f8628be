//! Names come from files of strangers: what a terminal would obey is shown and not sent.

use std::borrow::Cow;
use std::fmt::Write;

/// The text with every control character escaped as in Rust, such as `\u{1b}`; line ends and tabs are layout.
pub fn escaped(text: &str) -> Cow<'_, str> {
    with(text, |escaped, c| {
        let _ = write!(escaped, "\\u{{{:x}}}", c as u32);
    })
}

/// A name that takes part of a line: line ends and tabs of it are escaped as well, so that it cannot make up lines.
pub fn in_line(name: &str) -> String {
    let shown = name.replace('\n', "\\n").replace('\t', "\\t");
    escaped(&shown).into_owned()
}

/// JSON with those control characters escaped that JSON allows in texts and terminals obey.
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

/// Control characters, and marks that have a terminal show text in another order than it has.
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
