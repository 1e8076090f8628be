//! Edits of JSON configurations that leave everything else as it was: key order, comments, spaces, the way numbers are
//! written.

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstNode, CstObject, CstRootNode};
use serde::Serialize;

use crate::serving::error::ServingError;

/// One key of one file, before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edit {
    /// The file, relative to the folder.
    pub file: String,
    /// The key, its path joined by dots.
    pub key: String,
    /// Its value as it was written; `None` where it was not there.
    pub old: Option<String>,
    /// Its value now.
    pub new: String,
}

/// Reads a configuration.
pub fn read(file: &str, text: &str) -> Result<Config, ServingError> {
    Config::parse(file, text).map_err(|detail| ServingError::Config {
        file: file.to_owned(),
        detail,
    })
}

/// A JSON object in a file, while it is edited.
pub struct Config {
    file: String,
    root: CstRootNode,
    edits: Vec<Edit>,
}

impl Config {
    /// Reads `text`, the content of `file`.
    ///
    /// # Errors
    /// Says where the text is no JSON object.
    pub fn parse(file: &str, text: &str) -> Result<Self, String> {
        let root = CstRootNode::parse(text, &ParseOptions::default()).map_err(|e| e.to_string())?;
        if root.object_value().is_none() {
            return Err("expected a JSON object".to_owned());
        }
        Ok(Self {
            file: file.to_owned(),
            root,
            edits: Vec::new(),
        })
    }

    /// The value at `path` as it is written, strings without their quotes.
    #[must_use]
    pub fn get(&self, path: &[&str]) -> Option<String> {
        let (last, parents) = path.split_last()?;
        let value = self.object(parents)?.get(last)?.value()?;
        Some(written(&value))
    }

    /// The number at `path`.
    #[must_use]
    pub fn number(&self, path: &[&str]) -> Option<usize> {
        self.get(path)?.parse().ok()
    }

    /// Whether there is a value at `path` other than null.
    #[must_use]
    pub fn has(&self, path: &[&str]) -> bool {
        self.get(path).is_some_and(|value| value != "null")
    }

    /// Gives the key at `path` a number or a truth value; a key that is missing is added at the end of its object, and so
    /// are objects on the way. Nothing is edited where the value is there already.
    pub fn set(&mut self, path: &[&str], new: &str) {
        let Some((last, parents)) = path.split_last() else {
            return;
        };
        let old = self.get(path);
        if old.as_deref() == Some(new) {
            return;
        }
        let Some(mut object) = self.root.object_value() else {
            return;
        };
        for parent in parents {
            object = object.object_value_or_set(parent);
        }
        let value = match new {
            "true" | "false" => CstInputValue::Bool(new == "true"),
            number => CstInputValue::Number(number.to_owned()),
        };
        match object.get(last) {
            Some(property) => property.set_value(value),
            None => {
                object.append(last, value);
            }
        }
        self.edits.push(Edit {
            file: self.file.clone(),
            key: path.join("."),
            old,
            new: new.to_owned(),
        });
    }

    /// The text with its edits.
    #[must_use]
    pub fn finish(self) -> (String, Vec<Edit>) {
        (self.root.to_string(), self.edits)
    }

    fn object(&self, path: &[&str]) -> Option<CstObject> {
        let root = self.root.object_value()?;
        path.iter()
            .try_fold(root, |object, key| object.object_value(key))
    }
}

fn written(value: &CstNode) -> String {
    let string = value.as_string_lit().and_then(|s| s.decoded_value().ok());
    string.unwrap_or_else(|| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::Config;

    const TEXT: &str = "{\n    // kept\n    \"z\": 1.0e-05,   \"a\": { \"b\": 3, \"unknown\": [1,\n2] },\n    \"s\": \"x\" /* kept */\n}\n";

    #[test]
    fn only_the_named_keys_change() {
        let mut config = Config::parse("c.json", TEXT).unwrap_or_else(|e| unreachable!("{e}"));
        config.set(&["a", "b"], "7");
        config.set(&["s"], "false");
        let (text, edits) = config.finish();
        assert_eq!(
            text,
            TEXT.replace("\"b\": 3", "\"b\": 7")
                .replace("\"x\"", "false")
        );
        let told: Vec<_> = edits
            .iter()
            .map(|e| (e.key.as_str(), e.old.as_deref(), e.new.as_str()))
            .collect();
        assert_eq!(told, [("a.b", Some("3"), "7"), ("s", Some("x"), "false")]);
    }

    #[test]
    fn what_is_missing_is_added_at_the_end_and_what_is_right_stays() {
        let mut config =
            Config::parse("c.json", "{\n  \"a\": 1\n}").unwrap_or_else(|e| unreachable!("{e}"));
        config.set(&["a"], "1");
        config.set(&["new", "key"], "2");
        let (text, edits) = config.finish();
        assert_eq!(text, "{\n  \"a\": 1,\n  \"new\": {\n    \"key\": 2\n  }\n}");
        assert_eq!(edits.len(), 1);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "[]", "{\"a\": }", "{\"a\": 1", "3"] {
            assert!(Config::parse("c.json", text).is_err(), "{text}");
        }
    }
}
