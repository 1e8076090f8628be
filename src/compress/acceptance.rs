//! Acceptance of rewritten models: whether the output is published.

use crate::compress::error::CompressError;
use crate::compress::promise::Promise;
use crate::measure::quality::Quality;
use crate::validate::proof::Proof;

/// The result of the validation.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Validation was not requested.
    NotValidated,
    /// The outputs of both models were compared.
    Compared(Proof),
    /// The original runs but the rewritten model does not, for this reason.
    DoesNotRun(String),
}

/// The acceptance criterion of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Logits must be within the tolerance: for exact rewrites, or if the caller sets a tolerance.
    ToTolerance,
    /// Logits must be finite, and the same with the runtime's optimizations as without: for approximations, whose loss is reported.
    ToFinite,
}

/// Whether a model is accepted: it passed the validation, if that was requested, and its measured `quality` keeps the
/// `promise`, if both are given; a failed measurement keeps no promise. An exact model needs no `quality`.
#[must_use]
pub fn accepts(
    verdict: &Verdict,
    held: Held,
    promise: Option<Promise>,
    quality: Option<Result<&Quality, &CompressError>>,
) -> bool {
    let runs = match (verdict, held) {
        (Verdict::NotValidated, _) => true,
        (Verdict::DoesNotRun(_), _) => false,
        (Verdict::Compared(proof), Held::ToTolerance) => proof.is_finite() && proof.passed(),
        (Verdict::Compared(proof), Held::ToFinite) => proof.is_finite() && proof.is_stable(),
    };
    let kept = promise
        .zip(quality)
        .is_none_or(|(promise, quality)| quality.is_ok_and(|quality| promise.is_kept(quality)));
    runs && kept
}

#[cfg(test)]
mod tests {
    use super::{Held, Verdict, accepts};
    use crate::compress::error::CompressError;
    use crate::compress::promise::Promise;
    use crate::measure::quality::Quality;
    use crate::validate::compare::{Comparison, StepComparison};
    use crate::validate::proof::Proof;

    fn verdict(ratio: f64, finite: bool) -> Verdict {
        let step = StepComparison {
            scenario: String::new(),
            step: String::new(),
            batch: 1,
            tokens: 8,
            past: 0,
            positions: 8,
            max_delta: ratio,
            max_logit: 1.0,
            ratio,
            mean_kl: 0.0,
            top1_agreement: 1.0,
            finite,
        };
        Verdict::Compared(Proof {
            unoptimized: Comparison {
                original_runtime: String::new(),
                rewritten_runtime: String::new(),
                steps: vec![step],
                original_cache_bytes: 512.0,
                rewritten_cache_bytes: 256.0,
                tolerance: 1e-3,
            },
            optimized: None,
        })
    }

    fn quality(rewritten_perplexity: f64) -> Quality {
        Quality {
            tokens: 100,
            original_perplexity: 10.0,
            rewritten_perplexity,
            mean_kl: 0.01,
            top1_agreement: 1.0,
            tokens_at_once: 256,
            original_cache_bytes: 512.0,
            rewritten_cache_bytes: 256.0,
            positions: Vec::new(),
        }
    }

    #[test]
    fn an_approximation_may_differ_and_an_exact_rewrite_may_not() {
        let differs = verdict(0.5, true);
        assert!(accepts(&differs, Held::ToFinite, None, None));
        assert!(!accepts(&differs, Held::ToTolerance, None, None));
        assert!(accepts(&verdict(1e-4, true), Held::ToTolerance, None, None));
    }

    #[test]
    fn optimizations_must_not_change_an_approximation() {
        let Verdict::Compared(mut proof) = verdict(0.5, true) else {
            return;
        };
        let with = |proof: &mut Proof, kl: f64| {
            let mut optimized = proof.unoptimized.clone();
            optimized
                .steps
                .iter_mut()
                .for_each(|step| step.mean_kl = kl);
            proof.optimized = Some(optimized);
            accepts(
                &Verdict::Compared(proof.clone()),
                Held::ToFinite,
                None,
                None,
            )
        };
        assert!(with(&mut proof, 1e-3));
        assert!(!with(&mut proof, 1.0));
        proof
            .unoptimized
            .steps
            .iter_mut()
            .for_each(|step| step.mean_kl = 1.0);
        assert!(with(&mut proof, 1.0));
    }

    #[test]
    fn nothing_excuses_logits_that_are_not_finite_or_a_model_that_does_not_run() {
        for held in [Held::ToFinite, Held::ToTolerance] {
            assert!(!accepts(&verdict(0.0, false), held, None, None));
            let broken = Verdict::DoesNotRun("it does not load".to_owned());
            assert!(!accepts(&broken, held, None, None));
        }
    }

    #[test]
    fn a_promise_is_kept_by_what_is_measured() {
        let promise = Some(Promise::PerplexityIncrease(0.02));
        let good = verdict(0.5, true);
        let after = |perplexity: f64| {
            let quality = quality(perplexity);
            accepts(&good, Held::ToFinite, promise, Some(Ok(&quality)))
        };
        assert!(after(10.19));
        assert!(!after(10.3));
        assert!(!after(f64::NAN));
        let failed = Some(Err(&CompressError::NoText));
        assert!(!accepts(&good, Held::ToFinite, promise, failed));
        assert!(accepts(&good, Held::ToFinite, None, failed));
    }
}
