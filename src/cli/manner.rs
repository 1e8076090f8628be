//! The output options of every command.

use std::ffi::OsString;
use std::io::{self, IsTerminal};

use clap::{Args, ColorChoice, ValueEnum};

/// The output options of every command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Output")]
pub struct Manner {
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// Print only results and errors: no progress, no notes.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print the time of every stage on standard error.
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Colour verdicts.
    ///
    /// `auto` colours them on a terminal, unless the environment variable NO_COLOR is set.
    #[arg(hide_short_help = true, long, global = true, value_enum, hide_possible_values = true, default_value_t = Color::Auto, value_name = "auto|always|never")]
    pub color: Color,
}

/// When verdicts are coloured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    #[default]
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

impl Manner {
    /// The output options in `arguments`, for the error message of a command line that clap refuses.
    pub fn guess(arguments: &[OsString]) -> Self {
        let is = |word: &str| arguments.iter().any(|a| a == word);
        let pair = |value: &str| {
            let mut pairs = arguments.windows(2);
            pairs.any(|pair| matches!(pair, [name, after] if name == "--color" && after == value))
        };
        let asks = |value: &str| pair(value) || is(&format!("--color={value}"));
        Self {
            json: is("--json"),
            color: match (asks("never"), asks("always")) {
                (true, _) => Color::Never,
                (_, true) => Color::Always,
                _ => Color::Auto,
            },
            ..Self::default()
        }
    }
}

impl Color {
    /// Whether standard output is coloured.
    pub fn on_stdout(self) -> bool {
        self.on(io::stdout().is_terminal(), &|name| std::env::var_os(name))
    }

    /// Whether an output is coloured, depending on whether it is a terminal and on the environment.
    fn on(self, is_terminal: bool, environment: &dyn Fn(&str) -> Option<OsString>) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                let refused = environment("NO_COLOR").is_some_and(|value| !value.is_empty());
                let dumb = environment("TERM").is_some_and(|value| value == "dumb");
                is_terminal && !refused && !dumb
            }
        }
    }

    /// The same choice for clap's own messages.
    pub fn of_clap(self) -> ColorChoice {
        match self {
            Self::Always => ColorChoice::Always,
            Self::Never => ColorChoice::Never,
            Self::Auto => ColorChoice::Auto,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::{Color, Manner};

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        let none = |_: &str| None;
        let no_color = |name: &str| (name == "NO_COLOR").then(|| OsString::from("1"));
        let dumb = |name: &str| (name == "TERM").then(|| OsString::from("dumb"));
        assert!(Color::Auto.on(true, &none) && !Color::Auto.on(false, &none));
        assert!(!Color::Auto.on(true, &no_color) && !Color::Auto.on(true, &dumb));
        assert!(Color::Always.on(false, &no_color) && !Color::Never.on(true, &none));
    }

    #[test]
    fn a_refused_command_line_is_told_in_the_manner_that_it_asks_for() {
        let of = |words: &str| {
            let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
            Manner::guess(&words)
        };
        assert!(of("gqa2mla inspect --json").json && !of("gqa2mla inspect").json);
        assert_eq!(of("gqa2mla --color never x").color, Color::Never);
        assert_eq!(of("gqa2mla --color=always x").color, Color::Always);
    }
}
