//! The quality of a model on a text, as text output.

use serde_json::Value;

use crate::cli::screen::table;
use crate::fit::layer_errors::LayerError;
use crate::measure::quality::Quality;
use crate::report::{change, counted, grouped, measured, percent, short};

/// A table of relative errors of scores and outputs of each layer: predicted by the spectra, and measured. Ends with an empty
/// line. Layers are missing if a prompt, which they are measured in, loses nothing.
pub fn layers_text(layers: &[LayerError], made_by: Option<&Value>) -> String {
    if layers.is_empty() {
        return "layers: not measured, because the tokens of a prompt are read exactly, or the file fixes the sizes of a run\n\n"
            .to_owned();
    }
    let mut table = table(&["layer", "scores", "predicted", "outputs", "predicted"]);
    let shown = |error: Option<f64>| error.map_or_else(|| "-".to_owned(), short);
    let predicted = |layer: usize, side: &str| {
        let mut known = made_by?["layers"].as_array()?.iter();
        let of_layer = known.find(|l| l["layer"] == layer)?;
        // The predicted loss is a squared error.
        of_layer[side].as_f64().map(f64::sqrt)
    };
    let rows = layers.iter().map(|layer| {
        let cells = [
            shown(layer.scores),
            shown(predicted(layer.layer, "predicted_key_loss")),
            shown(layer.outputs),
            shown(predicted(layer.layer, "predicted_value_loss")),
        ];
        (layer.layer, cells)
    });
    // Equal rows of successive layers are merged into one.
    let rows: Vec<_> = rows.collect();
    for group in rows.chunk_by(|a, b| a.1 == b.1) {
        if let (Some((first, cells)), Some((last, _))) = (group.first(), group.last()) {
            let layers = match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            };
            table.add_row([&[layers][..], cells].concat());
        }
    }
    let unknown = match rows.iter().any(|(_, cells)| cells.iter().any(|c| c == "-")) {
        true => {
            "; -: not known, because\nthe model has no such value or does not tell how it was made"
        }
        false => "",
    };
    format!(
        "{table}\nroot mean square errors, relative, in the running models, where\nthose of earlier layers are in those of later ones; predicted:\nof the layer alone, before any reconstruction, without rounding{unknown}\n\n"
    )
}

/// Perplexity, KL, top-1 agreement and cache sizes, and the same by position if there is more than one range.
pub fn quality_text(quality: &Quality) -> String {
    let positions = positions_text(quality);
    format!(
        "perplexity {:.3} -> {:.3} ({}), KL {}, top-1 agreement {}, on {}, {}\nmeasured cache: {} -> {} bytes a token{positions}",
        quality.original_perplexity,
        quality.rewritten_perplexity,
        change(quality.increase()),
        short(quality.mean_kl),
        percent(quality.top1_agreement),
        counted(quality.tokens, "token"),
        match quality.tokens_at_once {
            1 => "read token by token: each sees all others through the cache".to_owned(),
            count => format!("read {count} at a time"),
        },
        measured(quality.original_cache_bytes),
        measured(quality.rewritten_cache_bytes),
    )
}

fn positions_text(quality: &Quality) -> String {
    if quality.positions.len() < 2 {
        return String::new();
    }
    let mut table = table(&[
        "positions",
        "tokens",
        "perpl.",
        "after",
        "rise",
        "KL",
        "top-1",
    ]);
    for bin in &quality.positions {
        table.add_row([
            format!("{}-{}", bin.first, bin.last),
            grouped(bin.tokens as u64),
            format!("{:.3}", bin.original_perplexity),
            format!("{:.3}", bin.rewritten_perplexity),
            change(bin.increase()),
            short(bin.mean_kl),
            percent(bin.top1_agreement),
        ]);
    }
    format!("\n\n{table}")
}
