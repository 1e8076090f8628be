//! Progress events of a compression.

use gqa2mla_passes::factor::CacheBits;

use crate::compress::frontier::Point;
use crate::compress::way::Way;

/// A stage of the work, whose steps are counted.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Stage {
    /// Calibration; steps are tokens of the text.
    Calibrating,
    /// Probing for separate ranks; steps are the keys or values of a layer.
    Probing,
    /// Recording for the reconstruction; steps are tokens of the text.
    Recording,
    /// Recording in the model whose earlier layers are rewritten; steps are tokens of the text.
    RecordingRewritten,
    /// Reconstruction; steps are those of gradient descent in all layers.
    Reconstructing {
        /// Number of layers.
        layers: usize,
        /// Relative squared error of the attention's output after the last step.
        error: f64,
    },
    /// Distillation of the rewritten model; steps are those of gradient descent.
    Distilling {
        /// The lowest held-out loss so far, in nats; not a number before the first.
        loss: f64,
    },
    /// Rewrite; steps are attentions.
    Rewriting,
    /// Measurement on held-out text; steps are tokens.
    Measuring,
    /// Measurement of the errors of each layer; steps are runs, one of each model.
    MeasuringLayers,
    /// The continuation of one prompt by both models; one step.
    Continuing,
    /// Rows of a comparison were read that a stopped run has measured; steps are rows, done those that were read.
    Resumed,
    /// A row of a comparison begins; steps are rows.
    Row {
        /// The method.
        way: Way,
        /// Bits of a cached number.
        bits: CacheBits,
        /// The largest rank of a latent.
        rank: usize,
    },
    /// The loss at one size of the cache was measured; one step.
    Tried(Point),
    /// Validation with the runtime's graph optimizations off; steps are runs of both models.
    Validating,
    /// Validation with graph optimizations on; steps are runs of both models.
    ValidatingOptimized,
}

/// Progress of a stage. A stage may occur repeatedly, since a search measures many models.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event {
    /// The stage.
    pub stage: Stage,
    /// Number of finished steps.
    pub done: usize,
    /// Total number of steps.
    pub total: usize,
}

/// The observer of progress, called after each step on any thread. It can stop the work by unwinding
/// ([`std::panic::resume_unwind`]): nothing is written to the output path, and finished layers are kept, so that a
/// later run resumes from them.
pub type Observer<'o> = dyn FnMut(Event) + Send + 'o;

/// A callback with (done, total) that reports progress of `stage` to `observer`.
pub(crate) fn steps<'a>(
    stage: Stage,
    observer: &'a mut Observer<'_>,
) -> impl FnMut(usize, usize) + Send + 'a {
    move |done, total| observer(Event { stage, done, total })
}
