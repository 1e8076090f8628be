//! Greedy decoding.

use crate::runtime::Session;
use crate::validate::compare::largest_index;
use crate::validate::error::ValidateError;
use crate::validate::interface::Interface;
use crate::validate::runner::Runner;

/// Appends the most likely token to `prompt`, `count` times; returns the new tokens.
///
/// # Errors
/// [`ValidateError`] if the model fails.
pub fn greedy(
    session: &mut dyn Session,
    interface: &Interface,
    prompt: &[i64],
    count: usize,
) -> Result<Vec<i64>, ValidateError> {
    let cached = !interface.caches.is_empty();
    let mut runner = Runner::new(session, interface)?;
    let mut text = prompt.to_vec();
    runner.start_one()?;
    let mut unread = prompt.len();
    for _ in 0..count {
        // Without a cache the whole text is processed again for every token.
        if !cached {
            runner.start_one()?;
            unread = text.len();
        }
        let tokens = text.get(text.len() - unread..).unwrap_or_default();
        let logits = runner.read(tokens)?;
        let vocabulary = logits.shape.last().copied().unwrap_or(0).max(1);
        let scores = logits.to_f32();
        let last = scores.chunks(vocabulary).last().unwrap_or_default();
        text.push(i64::try_from(largest_index(last)).unwrap_or(0));
        unread = 1;
    }
    Ok(text.split_off(prompt.len()))
}
