//! Losses and KL divergence of next-token predictions from logits.

use crate::runtime::tensor::{Data, Tensor};
use crate::validate::ValidateError;

/// The predictions of one token by both models.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prediction {
    /// Negative log-likelihood of the token in the original, in nats.
    pub original_loss: f64,
    /// The same in the rewritten model.
    pub rewritten_loss: f64,
    /// KL(original || rewritten) of the whole distribution, in nats.
    pub kl: f64,
    /// Whether both models have the same most likely token.
    pub same: bool,
}

impl Prediction {
    /// The predictions of `target`, with the logits `p` of the original and `q` of the rewritten model.
    #[must_use]
    pub fn of(p: &[f32], q: &[f32], target: i64) -> Self {
        let ((p_sum, p_largest), (q_sum, q_largest)) = (log_sum(p), log_sum(q));
        let kl = p.iter().zip(q).map(|(&x, &y)| {
            let (x, y) = (f64::from(x) - p_sum, f64::from(y) - q_sum);
            // Tokens with a negligible probability in the original contribute nothing.
            if x < -40.0 {
                0.0
            } else {
                f64::from((x as f32).exp()) * (x - y)
            }
        });
        let first = |row: &[f32], largest: f32| row.iter().position(|&x| x == largest);
        Self {
            original_loss: p_sum - logit(p, target),
            rewritten_loss: q_sum - logit(q, target),
            kl: kl.sum(),
            same: first(p, p_largest) == first(q, q_largest),
        }
    }
}

/// The rows of logits of all positions with a next token, each with that token.
///
/// # Errors
/// [`ValidateError::Interface`] if the logits have an unexpected shape or type.
pub fn rows<'l>(
    logits: &'l Tensor,
    targets: &[i64],
) -> Result<Vec<(&'l [f32], i64)>, ValidateError> {
    let [1, _, vocabulary] = *logits.shape.as_slice() else {
        return Err(ValidateError::Interface(format!(
            "logits have shape {:?}, expected [1, tokens, vocabulary]",
            logits.shape
        )));
    };
    let Data::F32(values) = &logits.data else {
        return Err(ValidateError::Interface("logits are not fp32".to_owned()));
    };
    let rows = values.chunks_exact(vocabulary.max(1));
    if rows.len() < targets.len() {
        return Err(ValidateError::Interface(format!(
            "the model gives logits for {} of {} positions: text is scored at every position",
            rows.len(),
            targets.len()
        )));
    }
    Ok(rows.zip(targets.iter().copied()).collect())
}

/// `log sum exp` of `row`, and its largest element.
fn log_sum(row: &[f32]) -> (f64, f32) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from((x - largest).exp())).sum();
    (f64::from(largest) + sum.ln(), largest)
}

fn logit(row: &[f32], token: i64) -> f64 {
    let at = usize::try_from(token).ok();
    at.and_then(|at| row.get(at))
        .map_or(f64::NAN, |&x| f64::from(x))
}

/// Negative log-likelihood of `target`, in nats.
#[must_use]
pub fn loss(row: &[f32], target: i64) -> f64 {
    log_sum(row).0 - logit(row, target)
}
