//! Two models on one text.

use crate::model::load::LoadedModel;
use crate::ports::subject;
use crate::quality::{Quality, Reader, compare};
use crate::runtime::{RuntimeOptions, open};
use crate::text::Text;
use crate::validate::ValidateError;

/// Reads `text` with both models; `progress` is told how many sequences of how many are read.
///
/// # Errors
/// [`ValidateError`] when a model cannot be opened, fails, or gives logits that cannot be scored.
pub fn measure(
    original: &LoadedModel,
    rewritten: &LoadedModel,
    text: &Text,
    options: &RuntimeOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Quality, ValidateError> {
    let interfaces = (
        subject(&original.model.proto)?.interface,
        subject(&rewritten.model.proto)?.interface,
    );
    let mut before = open(&original.path, options)?;
    let mut after = open(&rewritten.path, options)?;
    let before = Reader {
        session: before.as_mut(),
        interface: &interfaces.0,
    };
    let after = Reader {
        session: after.as_mut(),
        interface: &interfaces.1,
    };
    compare(before, after, text, progress)
}
