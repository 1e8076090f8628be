//! The history of a training run: losses of its steps, and of its checks on held-out text.

use serde::{Deserialize, Serialize};

/// Number of successive checks without improvement after which a run ends (early stopping).
const PATIENCE: usize = 4;

/// The loss on the held-out text after some steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Number of steps done.
    pub step: usize,
    /// Mean loss, in nats.
    pub loss: f64,
    /// Share of the answers of which every token is the most probable one; `None` for text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<f64>,
}

/// The history of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Course {
    /// Number of steps done.
    pub steps: usize,
    /// Mean loss of each step, in nats.
    pub losses: Vec<f64>,
    /// The losses on the held-out text.
    pub checks: Vec<Check>,
}

impl Course {
    /// The check with the lowest loss.
    #[must_use]
    pub fn best(&self) -> Option<Check> {
        let finite = self.checks.iter().filter(|c| c.loss.is_finite());
        finite.copied().min_by(|a, b| a.loss.total_cmp(&b.loss))
    }

    /// Whether the last checks have all been worse than an earlier one (early stopping).
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
