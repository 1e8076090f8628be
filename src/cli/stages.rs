//! The names of the stages of a compression in progress output.

use crate::cli::bar::Moment;
use crate::compress::events::{Event, Stage};
use crate::compress::frontier::Point;
use crate::report::counted;

/// The name of the validation stage with the runtime's graph optimizations on or off.
pub fn validating(optimized: bool) -> &'static str {
    match optimized {
        false => "validating",
        true => "validating, optimized",
    }
}

/// The message for the measurement of the errors of layers.
pub const MEASURING_LAYERS: &str = "measuring layers";

/// What an event reports.
pub enum Shown {
    /// Progress of a stage.
    Moment(Moment),
    /// A measured size of the cache.
    Tried(Point),
    /// A line of its own.
    Line(String),
    /// The row of a comparison to which the next stages belong.
    Row(String),
}

/// What `event` reports.
pub fn shown(event: Event) -> Shown {
    let Event { stage, done, total } = event;
    let (name, unit) = match stage {
        Stage::Tried(point) => return Shown::Tried(point),
        Stage::Resumed => {
            let rows = counted(total, "row");
            return Shown::Line(format!(
                "resumed {done} of {rows} from a run that was stopped"
            ));
        }
        Stage::Row { way, bits, rank } => {
            let way = way.name();
            let bits = bits.number();
            let bits = bits.map_or_else(String::new, |bits| format!(", {bits} bits"));
            let row = format!("row {done} of {total} ({way}{bits}, rank {rank}): ");
            return Shown::Row(row);
        }
        Stage::Calibrating => ("reading text", "token"),
        Stage::Probing => ("probing widths of keys and values", "probe"),
        Stage::Recording => ("reading text for the reconstruction", "token"),
        Stage::RecordingRewritten => ("reading text through rewritten layers", "token"),
        Stage::Reconstructing { .. } => ("reconstructing", "step"),
        Stage::Distilling { .. } => ("distilling", "step"),
        Stage::Rewriting => ("rewriting", "attention"),
        Stage::Measuring => ("reading held-out text with both models", "token"),
        Stage::MeasuringLayers => (MEASURING_LAYERS, "run"),
        Stage::Continuing => ("continuing a prompt with both models", "prompt"),
        Stage::Validating => (validating(false), "run"),
        Stage::ValidatingOptimized => (validating(true), "run"),
    };
    let moment = Moment::of(name, done, total, unit);
    Shown::Moment(match stage {
        Stage::Reconstructing { layers, error } => {
            let finished = layers * done / total.max(1);
            let layer = (finished + 1).min(layers);
            moment.with(format!(" layer {layer} of {layers}, error {error:.4}"))
        }
        Stage::Distilling { loss } if loss.is_finite() => {
            moment.with(format!(", held-out loss {loss:.4}"))
        }
        _ => moment,
    })
}
