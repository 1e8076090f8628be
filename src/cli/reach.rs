//! The context and the coverage of statistics as text.

use crate::fit::context::{Context, ContextSource};
use crate::fit::reach::{FEW, Reach};
use crate::report::{counted, grouped};

/// The target context, and the source of its length.
pub fn context_text(context: &Context) -> String {
    let last = context.positions.saturating_sub(1);
    let source = match &context.source {
        ContextSource::Asked => "--context".to_owned(),
        ContextSource::Configuration(file) => format!("the maximum in {file}"),
        ContextSource::Tables => "the rows of its position tables".to_owned(),
        ContextSource::Usual => "no configuration beside the model tells a maximum".to_owned(),
    };
    format!("factors for positions 0 to {last}: {source}\n")
}

/// The coverage of the statistics, with warnings.
pub fn reach_text(reach: &Reach) -> String {
    let mut text = format!(
        "statistics: {:.1} tokens for each direction of the cache\n",
        reach.tokens_a_direction
    );
    if reach.is_short() {
        text.push_str(&format!(
            "  these are few: from {FEW} on, more text hardly changes the factors\n"
        ));
    }
    if reach.bound_to_positions > 0 {
        text.push_str(&format!(
            "  the rotation of {} is not recognised: factors of the keys hold for the first {} positions, which were read; calibrate on sequences as long as the contexts to be served\n",
            counted(reach.bound_to_positions, "attention"),
            grouped(reach.read as u64)
        ));
    }
    text
}
