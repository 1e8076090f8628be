//! The options of a text.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::exit::UsageError;
use crate::measure::text::{Text, TextSource};

/// The options of a text, or of its token ids.
#[derive(Debug, Clone, Args)]
pub struct TextArgs {
    /// Text file, UTF-8; can be repeated.
    ///
    /// Several files are concatenated.
    #[arg(long, value_name = "FILE", conflicts_with = "token_ids")]
    text: Vec<PathBuf>,
    /// The model's tokenizer.json; default: beside the model.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Token ids instead of text: a JSON list or a .npy file.
    #[arg(long, value_name = "FILE")]
    token_ids: Option<PathBuf>,
}

impl TextArgs {
    /// Whether a text is given.
    pub fn is_given(&self) -> bool {
        !self.text.is_empty() || self.token_ids.is_some()
    }

    /// The given tokenizer, or else the one beside `model`.
    pub fn tokenizer(&self, model: &Path) -> Option<PathBuf> {
        self.tokenizer.clone().or_else(|| beside(model))
    }

    /// All files that are read for the text.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let named = self.text.iter().chain(&self.tokenizer);
        named.chain(&self.token_ids).map(PathBuf::as_path)
    }

    /// The source of the text, if one is given. The default tokenizer is the one beside `model`.
    pub fn source(&self, model: &Path) -> Result<Option<TextSource>, UsageError> {
        text_source(&self.text, self.tokenizer(model), self.token_ids.as_deref())
    }

    /// Reads the text for `model`, whose vocabulary has `vocabulary` tokens.
    pub fn read(
        &self,
        model: &Path,
        vocabulary: usize,
        tokens: usize,
        length: usize,
    ) -> anyhow::Result<Option<Text>> {
        let Some(source) = self.source(model)? else {
            return Ok(None);
        };
        Ok(Some(Text::read(&source, vocabulary, tokens, length)?))
    }
}

/// The source of the text, from `files` or `token_ids`, if one of them is given.
pub fn text_source(
    files: &[PathBuf],
    tokenizer: Option<PathBuf>,
    token_ids: Option<&Path>,
) -> Result<Option<TextSource>, UsageError> {
    if let Some(path) = token_ids {
        return Ok(Some(TextSource::Ids(path.to_path_buf())));
    }
    if files.is_empty() {
        return Ok(None);
    }
    let missing = "a text needs the model's tokenizer, and there is no tokenizer.json beside the model: give --tokenizer FILE, or the text's ids with --token-ids FILE";
    Ok(Some(TextSource::Text {
        files: files.to_vec(),
        tokenizer: tokenizer.ok_or_else(|| UsageError(missing.to_owned()))?,
    }))
}

/// The tokenizer in the folder of `model`, or in its parent folder, as in hub repositories with models in `onnx/`.
fn beside(model: &Path) -> Option<PathBuf> {
    let folder = match model.is_dir() {
        true => model,
        false => model.parent()?,
    };
    let folders = [Some(folder), folder.parent()];
    let mut files = folders.iter().flatten().map(|f| f.join("tokenizer.json"));
    files.find(|file| file.is_file())
}
