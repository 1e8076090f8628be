//! The continuation of a prompt by two models, token by token.

use serde::Serialize;

use crate::files::load::LoadedModel;
use crate::measure::text::TextSource;
use crate::runtime::{RuntimeOptions, open};
use crate::validate::ports::LanguageModel;
use crate::validate::{ValidateError, greedy};

/// Number of prompt tokens.
const PROMPT: usize = 64;
/// Number of new tokens.
const NEW: usize = 48;

/// The most likely continuation of one prompt by two models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Continuation {
    /// The prompt.
    pub prompt: Passage,
    /// The part of the continuation that both models have in common.
    pub common: Passage,
    /// The rest of the continuation by the original; empty if both models agree on every token.
    pub original: Passage,
    /// The rest of the continuation by the rewritten model.
    pub rewritten: Passage,
}

/// Tokens and their text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Passage {
    /// Token ids.
    pub tokens: Vec<i64>,
    /// Their text; `None` if the source has no tokenizer.
    pub text: Option<String>,
}

impl Passage {
    fn of(tokens: &[i64], source: &TextSource) -> Self {
        Self {
            tokens: tokens.to_vec(),
            text: source.decode(tokens),
        }
    }
}

/// Continues the first tokens of `sequence`, which is a part of `source`, with the most likely tokens of each model, one
/// token per run.
///
/// # Errors
/// [`ValidateError`] if a model cannot be opened or run.
pub fn continued(
    original: &LoadedModel,
    rewritten: &LoadedModel,
    sequence: &[i64],
    source: &TextSource,
    options: &RuntimeOptions,
) -> Result<Continuation, ValidateError> {
    let prompt = sequence.get(..PROMPT).unwrap_or(sequence);
    let new = |model: &LoadedModel| {
        let known = LanguageModel::of(&model.model.proto)?.fed(&options.given)?;
        let mut session = open(&model.path, options)?;
        greedy(session.as_mut(), &known.interface, prompt, NEW)
    };
    let (before, after) = (new(original)?, new(rewritten)?);
    let common = before
        .iter()
        .zip(&after)
        .take_while(|(a, b)| a == b)
        .count();
    let (common, before_rest) = before.split_at(common);
    let after_rest = after.get(common.len()..).unwrap_or_default();
    Ok(Continuation {
        prompt: Passage::of(prompt, source),
        common: Passage::of(common, source),
        original: Passage::of(before_rest, source),
        rewritten: Passage::of(after_rest, source),
    })
}
