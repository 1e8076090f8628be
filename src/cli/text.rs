//! The options that name a text.

use std::path::{Path, PathBuf};

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
    /// Another text, split by the same tokenizer.
    pub fn for_test(
        text: Option<PathBuf>,
        tokenizer: Option<PathBuf>,
        token_ids: Option<PathBuf>,
    ) -> Self {
        Self {
            text: text.into_iter().collect(),
            tokenizer,
            token_ids,
        }
    }

    /// The tokenizer, if one was given.
    pub fn tokenizer(&self) -> Option<PathBuf> {
        self.tokenizer.clone()
    }

    /// Every file that is read for it.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let named = self.text.iter().chain(&self.tokenizer);
        named.chain(&self.token_ids).map(PathBuf::as_path)
    }

    /// The text, if one was given.
    pub fn source(&self) -> Option<TextSource> {
        let ids = || self.token_ids.clone().map(TextSource::Ids);
        let text = || {
            if self.text.is_empty() {
                return None;
            }
            Some(TextSource::Text {
                files: self.text.clone(),
                tokenizer: self.tokenizer.clone()?,
            })
        };
        ids().or_else(text)
    }

    /// Reads it, for a model of `vocabulary` tokens.
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
