//! Edits of JSON configurations that preserve everything else: key order, comments, white space, the format of numbers.

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstNode, CstObject, CstRootNode};
use serde::Serialize;

use crate::serving::error::ServingError;

/// One edited key of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edit {
    /// The file, relative to the folder.
    pub file: String,
    /// The path of the key, joined by dots.
    pub key: String,
    /// Its old value as written; `None` if the key was added.
    pub old: Option<String>,
    /// Its new value.
    pub new: String,
}

/// Parses the configuration `text` of the file `file`.
pub fn read(file: &str, text: &str) -> Result<Config, ServingError> {
    Config::parse(file, text).map_err(|detail| ServingError::Config {
        file: file.to_owned(),
        detail,
    })
}

/// A JSON object of a file, for editing.
pub struct Config {
    file: String,
    root: CstRootNode,
    edits: Vec<Edit>,
}

impl Config {
    /// Parses `text`, the content of `file`.
    ///
    /// # Errors
    /// The position and reason, if the text is not a JSON object.
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

    /// The value at `path` as written, strings without quotes.
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

    /// Whether the value at `path` is an object.
    #[must_use]
    pub fn is_object(&self, path: &[&str]) -> bool {
        self.object(path).is_some()
    }

    /// Whether there is a value at `path` other than null.
    #[must_use]
    pub fn has(&self, path: &[&str]) -> bool {
        self.get(path).is_some_and(|value| value != "null")
    }

    /// Sets the key at `path` to a number or boolean. A missing key, and missing parent objects, are appended. If the
    /// key has the value already, nothing is edited.
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

    /// The edited text, and the list of edits.
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
