//! The names of the stages of a compression in progress output.

use crate::cli::bar::Moment;
use crate::compress::events::{Event, Stage};
use crate::compress::frontier::Point;

/// The name of the validation stage with the runtime's graph optimizations on or off.
pub fn validating(optimized: bool) -> &'static str {
    match optimized {
        false => "validating",
        true => "validating, optimized",
    }
}

/// The progress that an event reports, or the measured size of the cache as `Err`.
pub fn moment(event: Event) -> Result<Moment, Point> {
    let Event { stage, done, total } = event;
    let (name, unit) = match stage {
        Stage::Tried(point) => return Err(point),
        Stage::Calibrating => ("reading text", "tokens"),
        Stage::Probing => ("probing widths of keys and values", "probes"),
        Stage::Recording => ("reading text for the reconstruction", "tokens"),
        Stage::RecordingRewritten => ("reading text through rewritten layers", "tokens"),
        Stage::Reconstructing { .. } => ("reconstructing", "steps"),
        Stage::Rewriting => ("rewriting", "attentions"),
        Stage::Measuring => ("reading held-out text with both models", "tokens"),
        Stage::Validating => (validating(false), "runs"),
        Stage::ValidatingOptimized => (validating(true), "runs"),
    };
    let moment = Moment::of(name, done, total, unit);
    Ok(match stage {
        Stage::Reconstructing { layers, error } => {
            let finished = layers * done / total.max(1);
            let layer = (finished + 1).min(layers);
            moment.with(format!(" layer {layer} of {layers}, error {error:.4}"))
        }
        _ => moment,
    })
}
