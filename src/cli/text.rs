//! The options that name a text.

use std::path::PathBuf;

use clap::Args;
use gqa2mla::measure::text::{Text, TextError, TextSource};

/// Text, or the token ids of one.
#[derive(Debug, Clone, Args)]
pub struct TextArgs {
    /// Text files, UTF-8, read one after another; needs --tokenizer.
    #[arg(
        long,
        num_args = 1..,
        value_name = "FILE",
        requires = "tokenizer",
        conflicts_with = "token_ids"
    )]
    text: Vec<PathBuf>,
    /// The model's tokenizer.json.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Token ids in place of text: one JSON list, or a .npy file of integers.
    #[arg(long, value_name = "FILE")]
    token_ids: Option<PathBuf>,
}

impl TextArgs {
    /// The tokenizer, if one was given.
    pub fn tokenizer(&self) -> Option<&PathBuf> {
        self.tokenizer.as_ref()
    }

    /// The text, if one was given.
    pub fn source(&self) -> Option<TextSource> {
        source(&self.text, self.tokenizer(), self.token_ids.as_ref())
    }

    /// Reads the text for a model of `vocabulary` token ids.
    pub fn read(
        &self,
        vocabulary: usize,
        tokens: usize,
        length: usize,
    ) -> Result<Option<Text>, TextError> {
        self.source()
            .map(|source| Text::read(&source, vocabulary, tokens, length))
            .transpose()
    }
}

/// The text of `files` or of `token_ids`, if one of them was given.
pub fn source(
    files: &[PathBuf],
    tokenizer: Option<&PathBuf>,
    token_ids: Option<&PathBuf>,
) -> Option<TextSource> {
    if let Some(path) = token_ids {
        return Some(TextSource::Ids(path.clone()));
    }
    if files.is_empty() {
        return None;
    }
    Some(TextSource::Text {
        files: files.to_vec(),
        tokenizer: tokenizer?.clone(),
    })
}
