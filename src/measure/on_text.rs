//! Comparison of two model files on a text.

use crate::files::load::LoadedModel;
use crate::files::origin::exact_tokens;
use crate::measure::quality::{Quality, Reader, compare};
use crate::measure::text::Text;
use crate::runtime::{RuntimeOptions, open};
use crate::validate::ValidateError;
use crate::validate::ports::LanguageModel;

/// Measures the quality of `rewritten` against `original` on `text`. `progress` is called with (done, total) tokens.
///
/// # Errors
/// [`ValidateError`] if a model cannot be opened or run, or its logits cannot be scored.
pub fn measure(
    original: &LoadedModel,
    rewritten: &LoadedModel,
    text: &Text,
    options: &RuntimeOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Quality, ValidateError> {
    let interfaces = (
        (LanguageModel::of(&original.model.proto)?.fed(&options.given)?).interface,
        (LanguageModel::of(&rewritten.model.proto)?.fed(&options.given)?).interface,
    );
    let mut before = open(&original.path, options)?;
    let mut after = open(&rewritten.path, options)?;
    let before = Reader {
        session: before.as_mut(),
        interface: &interfaces.0,
        exact: exact_tokens(&original.model.proto),
    };
    let after = Reader {
        session: after.as_mut(),
        interface: &interfaces.1,
        exact: exact_tokens(&rewritten.model.proto),
    };
    compare(before, after, text, progress)
}
