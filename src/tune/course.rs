//! How a run goes: losses of its steps, and of its checks on text that it does not train on.

use serde::{Deserialize, Serialize};

/// Checks in a row without a better loss after which a run ends.
const PATIENCE: usize = 4;

/// Loss on the held-out text after some steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Steps done.
    pub step: usize,
    /// Mean loss, in nats.
    pub loss: f64,
}

/// How a run went so far.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Course {
    /// Steps done.
    pub steps: usize,
    /// Mean loss of each step, in nats.
    pub losses: Vec<f64>,
    /// Losses on the held-out text.
    pub checks: Vec<Check>,
}

impl Course {
    /// The check with the lowest loss.
    #[must_use]
    pub fn best(&self) -> Option<Check> {
        let finite = self.checks.iter().filter(|c| c.loss.is_finite());
        finite.copied().min_by(|a, b| a.loss.total_cmp(&b.loss))
    }

    /// Whether the last checks were all worse than one before them.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        let best = self.best().map(|best| best.step);
        let since = self
            .checks
            .iter()
            .rev()
            .take_while(|c| Some(c.step) != best);
        since.count() >= PATIENCE
    }
}
