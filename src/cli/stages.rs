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

/// The message for the measurement of the errors of layers.
pub const MEASURING_LAYERS: &str = "measuring layers";

/// The progress that an event reports, or the measured size of the cache as `Err`.
pub fn moment(event: Event) -> Result<Moment, Point> {
    let Event { stage, done, total } = event;
    let (name, unit) = match stage {
        Stage::Tried(point) => return Err(point),
        Stage::Calibrating => ("reading text", "token"),
        Stage::Probing => ("probing widths of keys and values", "probe"),
        Stage::Recording => ("reading text for the reconstruction", "token"),
        Stage::RecordingRewritten => ("reading text through rewritten layers", "token"),
        Stage::Reconstructing { .. } => ("reconstructing", "step"),
        Stage::Rewriting => ("rewriting", "attention"),
        Stage::Measuring => ("reading held-out text with both models", "token"),
        Stage::MeasuringLayers => (MEASURING_LAYERS, "run"),
        Stage::Continuing => ("continuing a prompt with both models", "prompt"),
        Stage::Validating => (validating(false), "run"),
        Stage::ValidatingOptimized => (validating(true), "run"),
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
