//! Examples of prompt and answer, from a JSONL file, as token ids.

use std::path::Path;

use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::measure::text::{TextError, known_tokenizer, read_text};

/// A prompt and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The token ids of the prompt, followed by those of the answer.
    pub ids: Vec<i64>,
    /// Number of tokens of the prompt, at least 1.
    pub prompt: usize,
}

/// A line of the file.
#[derive(Deserialize)]
struct Row {
    prompt: String,
    answer: String,
}

/// Reads the examples of `file`, a JSON object with the texts `prompt` and `answer` in every line, with `tokenizer` for a
/// model with `vocabulary` tokens. Prompt and answer are tokenized separately; special tokens that are written in them, such
/// as `<|endoftext|>` at the end of an answer, become one token each. Empty lines are skipped.
///
/// # Errors
/// [`TextError`] with the file and the line.
pub fn examples(
    file: &Path,
    tokenizer: &Path,
    vocabulary: usize,
) -> Result<Vec<Example>, TextError> {
    let known = known_tokenizer(tokenizer, vocabulary)?;
    let text = read_text(file)?;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let example = example(line, &known).map_err(|detail| TextError::Format {
            path: file.display().to_string(),
            detail: format!("line {}: {detail}", number + 1),
        })?;
        found.push(example);
    }
    if found.is_empty() {
        return Err(TextError::Format {
            path: file.display().to_string(),
            detail: "it has no examples: each line is a JSON object with the texts \"prompt\" and \"answer\""
                .to_owned(),
        });
    }
    Ok(found)
}

fn example(line: &str, tokenizer: &Tokenizer) -> Result<Example, String> {
    let row: Row = serde_json::from_str(line).map_err(|e| {
        format!("expected a JSON object with the texts \"prompt\" and \"answer\": {e}")
    })?;
    let tokens = |text: &str| {
        let encoded = tokenizer
            .encode_fast(text, false)
            .map_err(|e| e.to_string())?;
        Ok::<_, String>(
            encoded
                .get_ids()
                .iter()
                .map(|&id| i64::from(id))
                .collect::<Vec<i64>>(),
        )
    };
    let (mut ids, answer) = (tokens(&row.prompt)?, tokens(&row.answer)?);
    if ids.is_empty() || answer.is_empty() {
        return Err("prompt and answer have at least one token each".to_owned());
    }
    let prompt = ids.len();
    ids.extend(answer);
    Ok(Example { ids, prompt })
}
