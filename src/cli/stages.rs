//! The stages of a compression, as progress names them.

use crate::cli::bar::Moment;
use crate::compress::events::{Event, Stage};
use crate::compress::frontier::Point;

/// The message for a validation with the runtime's graph optimizations on or off.
pub fn validating(optimized: bool) -> &'static str {
    match optimized {
        false => "validating",
        true => "validating, optimized",
    }
}

/// The message for the measurement of the errors of layers.
pub const MEASURING_LAYERS: &str = "measuring layers";

/// What a progress bar shows of an event, or the size of the cache that was measured.
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
