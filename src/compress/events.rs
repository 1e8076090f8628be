//! What a caller hears while a model is compressed.

/// A part of the work, whose steps are counted.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Stage {
    /// Sequences of the text read for the statistics.
    Calibrating,
    /// Sides of layers narrowed one at a time, to learn what each of them costs.
    Probing,
    /// Sequences of the text read for the reconstruction.
    Recording,
    /// Steps of gradient descent over all layers.
    Reconstructing {
        /// Relative squared error of the attention's output after the last step.
        error: f64,
    },
    /// Attentions rewritten.
    Rewriting,
    /// Sequences of the held-out text read with both models.
    Measuring,
    /// Runs of both models with the runtime's graph optimizations off.
    Validating,
    /// Runs of both models with them on.
    ValidatingOptimized,
}

/// `done` of `total` steps of a stage are done. A stage may come more than once: a search measures many models.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event {
    /// The stage.
    pub stage: Stage,
    /// Steps done.
    pub done: usize,
    /// Steps there are.
    pub total: usize,
}

/// Called after each step.
pub type Observer<'o> = dyn FnMut(Event) + Send + 'o;

/// A function of steps done and steps there are, as the rooms below call it, that reports `stage` to `observer`.
pub(crate) fn steps<'a>(
    stage: Stage,
    observer: &'a mut Observer<'_>,
) -> impl FnMut(usize, usize) + Send + 'a {
    move |done, total| observer(Event { stage, done, total })
}
