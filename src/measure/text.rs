//! Token ids, from text files with a tokenizer or from a file of ids.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use gqa2mla_passes::numbers::counted;
use tokenizers::Tokenizer;

use crate::measure::npy;

/// Largest size of a text file in bytes. Special files such as /dev/zero have no end.
const LONGEST: u64 = 1 << 30;

/// Largest ratio of embedding rows to tokens of the tokenizer: exporters pad the embedding.
const PADDED_VOCABULARY: f64 = 1.1;

/// The source of token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextSource {
    /// Text files, which are concatenated, and a `tokenizer.json`.
    Text {
        /// UTF-8 files.
        files: Vec<PathBuf>,
        /// A file in the format of Hugging Face's tokenizers.
        tokenizer: PathBuf,
    },
    /// A file of token ids: a JSON list, or a .npy file of integers.
    Ids(PathBuf),
}

impl TextSource {
    /// The files of the text or of its token ids, without the tokenizer.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let files = match self {
            Self::Text { files, .. } => files.as_slice(),
            Self::Ids(file) => std::slice::from_ref(file),
        };
        files.iter().map(PathBuf::as_path)
    }

    /// The text of `ids`, special tokens included; `None` without a tokenizer, or if it cannot decode them.
    #[must_use]
    pub fn decode(&self, ids: &[i64]) -> Option<String> {
        let Self::Text { tokenizer, .. } = self else {
            return None;
        };
        let known = Tokenizer::from_file(tokenizer).ok()?;
        let ids: Vec<u32> = ids
            .iter()
            .map(|&id| u32::try_from(id))
            .collect::<Result<_, _>>()
            .ok()?;
        known.decode(&ids, false).ok()
    }
}

/// A text, divided into independent sequences of equal length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The token ids of all sequences.
    pub ids: Vec<i64>,
    /// Number of tokens per sequence.
    pub length: usize,
}

/// Why token ids cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file cannot be read.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: String,
        /// The I/O error.
        cause: io::Error,
    },
    /// A file is not UTF-8, or not a list of integers.
    #[error("{path}: {detail}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// A file is not a tokenizer.
    #[error("{path}: not a tokenizer.json: {detail}")]
    Tokenizer {
        /// The file.
        path: String,
        /// The error of the library.
        detail: String,
    },
    /// The tokenizer is that of another model.
    #[error(
        "{path}: this tokenizer knows {} and the model {vocabulary}: it belongs to another model (give token ids with --token-ids if it does not)", counted(*.tokens, "token")
    )]
    Vocabulary {
        /// The tokenizer.
        path: String,
        /// Number of its tokens.
        tokens: usize,
        /// Number of rows of the model's embedding.
        vocabulary: usize,
    },
    /// A token id is out of range.
    #[error("{path}: token id {id} is out of range: the model knows ids 0 to {largest}")]
    Id {
        /// The file of the id.
        path: String,
        /// The id.
        id: i64,
        /// The largest valid id.
        largest: usize,
    },
    /// The text has too few tokens.
    #[error("{path}: it has {}, and at least {needed} are needed", counted(*.found, "token"))]
    TooShort {
        /// The first file.
        path: String,
        /// Number of tokens.
        found: usize,
        /// Smallest number of tokens.
        needed: usize,
    },
}

impl Text {
    /// Reads at most `tokens` ids for a model with `vocabulary` tokens, in sequences of `length`. An incomplete last
    /// sequence is dropped; a text shorter than `length` becomes one shorter sequence.
    ///
    /// # Errors
    /// [`TextError`] with the file.
    pub fn read(
        source: &TextSource,
        vocabulary: usize,
        tokens: usize,
        length: usize,
    ) -> Result<Self, TextError> {
        let (mut ids, path) = match source {
            TextSource::Text { files, tokenizer } => (
                tokenized(files, tokenizer, vocabulary)?,
                files.first().unwrap_or(tokenizer),
            ),
            TextSource::Ids(path) => (listed(path)?, path),
        };
        let path = path.display().to_string();
        if let Some(&id) = ids
            .iter()
            .find(|id| usize::try_from(**id).map_or(true, |id| id >= vocabulary))
        {
            return Err(TextError::Id {
                path,
                id,
                largest: vocabulary.saturating_sub(1),
            });
        }
        ids.truncate(tokens);
        // At least two tokens are needed for one prediction.
        if ids.len() < 2 {
            return Err(TextError::TooShort {
                path,
                found: ids.len(),
                needed: 2,
            });
        }
        let length = length.clamp(2, ids.len());
        ids.truncate(ids.len() / length * length);
        Ok(Self { ids, length })
    }

    /// The sequences, in order.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = &[i64]> {
        self.ids.chunks_exact(self.length.max(1))
    }

    /// The same tokens in sequences of `length`, or in one shorter sequence if there are fewer.
    #[must_use]
    pub fn in_sequences_of(mut self, length: usize) -> Self {
        self.length = length.clamp(2, self.ids.len().max(2));
        self.ids
            .truncate(self.ids.len() / self.length * self.length);
        self
    }

    /// The first `tokens` tokens, in whole sequences: at least one, which becomes shorter if `tokens` are fewer.
    #[must_use]
    pub fn first(mut self, tokens: usize) -> Self {
        self.ids.truncate(tokens.max(2));
        let length = self.length;
        self.in_sequences_of(length)
    }

    /// Divides the text into a first part and a held-out last part: a third of it, at most `most` tokens. With fewer
    /// than three sequences, these become shorter. `None` if the text is too short.
    #[must_use]
    pub fn hold_out(&self, most: usize) -> Option<(Self, Self)> {
        let length = self.length.min(self.ids.len() / 3);
        let sequences = self.ids.len().checked_div(length)?;
        let held_out = (most / length).min(sequences / 3).max(1);
        let (first, rest) = self.ids.split_at(length * sequences.checked_sub(held_out)?);
        let part = |ids: &[i64]| Self {
            ids: ids.chunks_exact(length).flatten().copied().collect(),
            length,
        };
        (length >= 2).then(|| (part(first), part(rest)))
    }
}

/// The tokenizer in the file `tokenizer`, for a model with `vocabulary` tokens.
///
/// # Errors
/// [`TextError`] if the file is no tokenizer, or that of another model.
pub(super) fn known_tokenizer(tokenizer: &Path, vocabulary: usize) -> Result<Tokenizer, TextError> {
    let shown = tokenizer.display().to_string();
    let not_one = |detail: String| TextError::Tokenizer {
        path: shown.clone(),
        detail,
    };
    let bytes = fs::read(tokenizer).map_err(|cause| TextError::Io {
        path: shown.clone(),
        cause,
    })?;
    let known = Tokenizer::from_bytes(&bytes).map_err(|e| not_one(e.to_string()))?;
    let tokens = known.get_vocab_size(true);
    if tokens > vocabulary || tokens as f64 * PADDED_VOCABULARY < vocabulary as f64 {
        return Err(TextError::Vocabulary {
            path: shown,
            tokens,
            vocabulary,
        });
    }
    Ok(known)
}

/// The UTF-8 text of `file`.
///
/// # Errors
/// [`TextError`] if it cannot be read, or is not text.
pub(super) fn read_text(file: &Path) -> Result<String, TextError> {
    let path = file.display().to_string();
    let not_text = |path| TextError::Format {
        path,
        detail: "it is not UTF-8 text: give plain text, or token ids with --token-ids".to_owned(),
    };
    let mut text = String::new();
    let opened = fs::File::open(file);
    let read = opened.and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text));
    match read {
        Ok(bytes) if bytes as u64 > LONGEST => Err(TextError::Format {
            path,
            detail: "it has more than 1 GB: give a part of it".to_owned(),
        }),
        // UTF-16 has a zero byte in every Latin letter.
        Ok(_) if text.contains('\0') => Err(not_text(path)),
        Ok(_) => Ok(text),
        Err(cause) if cause.kind() == io::ErrorKind::InvalidData => Err(not_text(path)),
        Err(cause) => Err(TextError::Io { path, cause }),
    }
}

fn tokenized(
    files: &[PathBuf],
    tokenizer: &Path,
    vocabulary: usize,
) -> Result<Vec<i64>, TextError> {
    let known = known_tokenizer(tokenizer, vocabulary)?;
    let mut ids = Vec::new();
    for file in files {
        let text = read_text(file)?;
        let encoded = known
            .encode_fast(text, false)
            .map_err(|e| TextError::Format {
                path: file.display().to_string(),
                detail: e.to_string(),
            })?;
        ids.extend(encoded.get_ids().iter().map(|&id| i64::from(id)));
    }
    Ok(ids)
}

fn listed(path: &Path) -> Result<Vec<i64>, TextError> {
    let shown = path.display().to_string();
    let bytes = fs::read(path).map_err(|cause| TextError::Io {
        path: shown.clone(),
        cause,
    })?;
    if path.extension().is_some_and(|e| e == "npy") {
        return npy::integers(&bytes).map_err(|e| TextError::Format {
            path: shown,
            detail: format!("expected a .npy file of integers: {e}"),
        });
    }
    serde_json::from_slice(&bytes).map_err(|e| TextError::Format {
        path: shown,
        detail: format!("expected one JSON list of token ids: {e}"),
    })
}
