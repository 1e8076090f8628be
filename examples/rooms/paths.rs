//! The module paths that a Rust file uses, read from its tokens.
//!
//! The file is not parsed to a syntax tree, because paths inside macros must be found too.

/// The module paths in a file.
#[derive(Debug, Default)]
pub struct Named {
    /// Paths that begin with `crate`, `super`, `self` or a child module: in expressions, types and private `use`.
    pub paths: Vec<Vec<String>>,
    /// The names that `pub use` re-exports, each with the path that it stands for.
    pub exports: Vec<(String, Vec<String>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'t> {
    Word(&'t str),
    /// `::`
    Separator,
    Sign(char),
}

/// Reads `text`, a file of the crate `name`. Paths may begin with `crate` or with the name of the crate.
pub fn named(text: &str, name: &str) -> Named {
    let tokens = tokens(text);
    let children: Vec<&str> = tokens
        .windows(3)
        .filter_map(|window| match *window {
            [Token::Word("mod"), Token::Word(child), Token::Sign(';')] => Some(child),
            _ => None,
        })
        .collect();
    let mut reader = Reader {
        tokens: &tokens,
        at: 0,
        children: &children,
        name,
        found: Named::default(),
    };
    reader.read();
    reader.found
}

struct Reader<'t> {
    tokens: &'t [Token<'t>],
    at: usize,
    children: &'t [&'t str],
    name: &'t str,
    found: Named,
}

impl<'t> Reader<'t> {
    fn peek(&self, ahead: usize) -> Option<Token<'t>> {
        self.tokens.get(self.at + ahead).copied()
    }

    fn read(&mut self) {
        let mut braces = 0usize;
        // Depth of braces at which each inline module ends.
        let mut inline: Vec<usize> = Vec::new();
        let mut public = false;
        let mut after_separator = false;
        while let Some(token) = self.peek(0) {
            let follows = after_separator;
            after_separator = token == Token::Separator;
            match token {
                Token::Sign('{') => braces += 1,
                Token::Sign('}') => {
                    braces = braces.saturating_sub(1);
                    inline.retain(|end| *end < braces + 1);
                }
                Token::Word("mod")
                    if matches!(self.peek(1), Some(Token::Word(_)))
                        && self.peek(2) == Some(Token::Sign('{')) =>
                {
                    braces += 1;
                    inline.push(braces);
                    self.at += 2;
                }
                Token::Word("pub") => {
                    public = true;
                    if self.peek(1) == Some(Token::Sign('(')) {
                        while self.peek(0).is_some_and(|t| t != Token::Sign(')')) {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    continue;
                }
                Token::Word("use") => {
                    self.at += 1;
                    self.tree(&mut Vec::new(), inline.len(), public);
                    public = false;
                    continue;
                }
                Token::Word(word)
                    if !follows && self.begins(word) && self.peek(1) == Some(Token::Separator) =>
                {
                    let path = self.path();
                    self.add(path, None, inline.len(), false);
                    continue;
                }
                _ => {}
            }
            public = false;
            self.at += 1;
        }
    }

    /// Whether a path that begins with `word` is within the crate.
    fn begins(&self, word: &str) -> bool {
        ["crate", "super", "self", self.name].contains(&word) || self.children.contains(&word)
    }

    /// Reads a path such as `a::b::c`.
    fn path(&mut self) -> Vec<String> {
        let mut path = Vec::new();
        while let Some(Token::Word(word)) = self.peek(0) {
            path.push(word.to_owned());
            self.at += 1;
            match (self.peek(0), self.peek(1)) {
                (Some(Token::Separator), Some(Token::Word(_))) => self.at += 1,
                _ => break,
            }
        }
        path
    }

    /// Reads the tree of a `use` after `prefix`: `a::{b, c::d as e, self}`.
    fn tree(&mut self, prefix: &mut Vec<String>, inline: usize, public: bool) {
        let depth = prefix.len();
        loop {
            match self.peek(0) {
                Some(Token::Word("as")) => {
                    let alias = match self.peek(1) {
                        Some(Token::Word(alias)) => Some(alias),
                        _ => None,
                    };
                    self.at += 2;
                    self.add(prefix.clone(), alias, inline, public);
                    break;
                }
                Some(Token::Word(word)) => {
                    prefix.push(word.to_owned());
                    self.at += 1;
                    if !matches!(self.peek(0), Some(Token::Separator | Token::Word("as"))) {
                        self.add(prefix.clone(), None, inline, public);
                        break;
                    }
                }
                Some(Token::Separator) => self.at += 1,
                Some(Token::Sign('*')) => {
                    self.at += 1;
                    self.add(prefix.clone(), Some("*"), inline, public);
                    break;
                }
                Some(Token::Sign('{')) => {
                    self.at += 1;
                    while !matches!(self.peek(0), None | Some(Token::Sign('}'))) {
                        if self.peek(0) == Some(Token::Sign(',')) {
                            self.at += 1;
                        } else {
                            self.tree(prefix, inline, public);
                        }
                    }
                    self.at += 1;
                    break;
                }
                _ => break,
            }
        }
        prefix.truncate(depth);
    }

    /// Adds a path within the crate. In `inline` nested inline modules, the first `inline` `super` segments stay in the
    /// file.
    fn add(&mut self, mut path: Vec<String>, alias: Option<&str>, inline: usize, public: bool) {
        if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
            path.pop();
        }
        if !path.first().is_some_and(|first| self.begins(first)) {
            return;
        }
        let supers = path.iter().take_while(|part| *part == "super").count();
        if supers > 0 && supers <= inline || inline > 0 && path.first().is_some_and(|p| p == "self")
        {
            // The path stays in this file.
            return;
        }
        if supers > 0 {
            path.drain(..inline);
        }
        match (public && inline == 0, path.last()) {
            (true, Some(last)) => {
                let name = alias.unwrap_or(last).to_owned();
                self.found.exports.push((name, path));
            }
            _ => self.found.paths.push(path),
        }
    }
}

/// The names and punctuation of `text`, without comments, strings, characters and lifetimes.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = skipped(rest);
        if skipped > 0 {
            rest = rest.get(skipped..).unwrap_or_default();
            continue;
        }
        let word = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let length = match first {
            _ if word > 0 => {
                tokens.push(Token::Word(rest.get(..word).unwrap_or_default()));
                word
            }
            ':' if rest.starts_with("::") => {
                tokens.push(Token::Separator);
                2
            }
            _ => {
                if !first.is_whitespace() {
                    tokens.push(Token::Sign(first));
                }
                first.len_utf8()
            }
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    tokens
}

/// Length of the comment, string, character or lifetime at the start of `text`; 0 if there is none.
fn skipped(text: &str) -> usize {
    let after = |from: usize, end: &str| {
        let rest = text.get(from..).unwrap_or_default();
        rest.find(end)
            .map_or(text.len(), |at| from + at + end.len())
    };
    if text.starts_with("//") {
        return after(2, "\n");
    }
    if text.starts_with("/*") {
        return after(2, "*/");
    }
    if text.starts_with('\'') {
        let mut inside = text.chars().skip(1);
        return match (inside.next(), inside.next()) {
            (Some('\\'), Some(escaped)) => after(2 + escaped.len_utf8(), "'"),
            (Some(one), Some('\'')) => 2 + one.len_utf8(),
            // A lifetime, whose name is no path.
            _ => {
                let name = text.get(1..).unwrap_or_default();
                1 + name
                    .find(|c: char| !c.is_alphanumeric() && c != '_')
                    .unwrap_or(name.len())
            }
        };
    }
    let letters = text.len() - text.trim_start_matches(['b', 'c', 'r']).len();
    let (kind, rest) = text.split_at(letters.min(2));
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    if kind.ends_with('r') && rest.get(hashes..).is_some_and(|r| r.starts_with('"')) {
        return after(
            kind.len() + hashes + 1,
            &format!("\"{}", "#".repeat(hashes)),
        );
    }
    if !rest.starts_with('"') {
        return 0;
    }
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '"' if !escaped => return kind.len() + at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}
