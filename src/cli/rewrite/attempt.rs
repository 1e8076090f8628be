//! One model rewritten, and what is told of it.

use gqa2mla::compress::compressor::Compressed;
use gqa2mla::fit::context::Context;
use gqa2mla::fit::layer_errors::LayerError;
use gqa2mla::fit::reconstruct::Outcome as Reconstructed;
use gqa2mla::measure::quality::Quality;
use serde_json::{Value, json};

use crate::cli::calibrate::bound_text;
use crate::cli::rewrite::layout::Layouts;
use crate::cli::rewrite::search::Searched;
use crate::cli::rewrite::summary::Summary;
use crate::cli::validate::{Report, quality_text};

/// What the statistics of a smaller latent reach.
pub struct Reach {
    /// The positions to be served.
    pub served: Context,
    /// Positions that were read.
    pub read: usize,
    /// Attentions whose rotation is not recognised.
    pub bound: usize,
    /// Tokens for each direction of the cache.
    pub tokens_a_direction: f64,
}

impl Reach {
    fn text(&self) -> String {
        format!(
            "factors for {}, from {:.1} tokens for each direction\n{}",
            self.served.text(),
            self.tokens_a_direction,
            bound_text(self.bound, self.read)
        )
    }

    fn json(&self) -> Value {
        json!({
            "positions": self.served.positions, "source": self.served.source, "read": self.read,
            "bound_to_positions": self.bound, "tokens_a_direction": self.tokens_a_direction,
        })
    }
}

/// One model rewritten, with all that is known of it, before it has its name.
pub struct Attempt {
    /// The model.
    pub compressed: Compressed,
    /// What was done.
    pub summary: Summary,
    /// Where its factors hold, if they were made from statistics.
    pub reach: Option<Reach>,
    /// How its size was found, if it was searched.
    pub searched: Option<Searched>,
    /// Both layouts, if two were made.
    pub layouts: Option<Layouts>,
    /// Both models on the same prompts.
    pub validation: Option<Report>,
    /// Why the rewritten model does not run.
    pub failure: Option<String>,
    /// What it loses on text that nothing was fitted to, or why that was not measured.
    pub quality: Option<Result<Quality, String>>,
    /// Errors of each layer in the running models, where a report asks for them, or why they were not measured.
    pub measured: Option<Result<Vec<LayerError>, String>>,
    /// Whether it may have its name.
    pub accepted: bool,
}

impl Attempt {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = self.summary.text();
        text.push_str(&self.reach.as_ref().map(Reach::text).unwrap_or_default());
        text.push_str(
            &self
                .searched
                .as_ref()
                .map(Searched::text)
                .unwrap_or_default(),
        );
        text.push_str(&self.layouts.map(Layouts::text).unwrap_or_default());
        text.push_str(&outcomes_text(&self.compressed.outcomes));
        match (&self.validation, &self.failure) {
            (Some(report), _) => {
                text.push_str(&format!("\n{}\n", report.text(self.summary.lossy)));
            }
            (None, Some(failure)) => text.push_str(&format!("{failure}\n")),
            (None, None) => text.push_str("not validated (--no-validate)\n"),
        }
        match &self.quality {
            Some(Ok(quality)) => {
                text.push_str(&format!("on held-out text: {}\n", quality_text(quality)))
            }
            Some(Err(why)) => text.push_str(&format!("not measured on text: {why}\n")),
            None => {}
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "rewrite": self.summary.json(),
            "context": self.reach.as_ref().map(Reach::json),
            "search": self.searched.as_ref().map(Searched::json),
            "layouts": self.layouts.map(Layouts::json),
            "reconstruction": self.compressed.outcomes.iter().map(outcome_json).collect::<Vec<_>>(),
            "validation": self.validation.as_ref().map(Report::json),
            "quality": self.quality.as_ref().and_then(|q| q.as_ref().ok()),
            "failure": self.failure,
        })
    }

    /// For a report: the same, and for each layer its spectra and the errors that were measured.
    pub fn report(&self) -> Value {
        let mut value = self.json();
        let sites = &self.compressed.staged.rewritten.sites;
        let layers = value
            .pointer_mut("/rewrite/layers")
            .and_then(Value::as_array_mut);
        let measured = self.measured.as_ref().and_then(|m| m.as_ref().ok());
        for (layer, site) in layers.into_iter().flatten().zip(sites) {
            let found = measured.into_iter().flatten();
            let found = found.into_iter().find(|e| e.layer == site.site.layer);
            if let Some(layer) = layer.as_object_mut() {
                layer.insert("key_spectrum".to_owned(), json!(site.key.spectrum));
                layer.insert("value_spectrum".to_owned(), json!(site.value.spectrum));
                layer.insert(
                    "measured_score_error".to_owned(),
                    json!(found.map(|e| e.scores)),
                );
                layer.insert(
                    "measured_output_error".to_owned(),
                    json!(found.map(|e| e.outputs)),
                );
            }
        }
        let why = self.measured.as_ref().and_then(|m| m.as_ref().err());
        if let Some(value) = value.as_object_mut() {
            value.insert("layers_not_measured".to_owned(), json!(why));
        }
        value
    }
}

fn outcomes_text(outcomes: &[Reconstructed]) -> String {
    let errors: Vec<[f64; 2]> = outcomes.iter().filter_map(|o| o.error).collect();
    let mean = |of: usize| {
        let sum: f64 = errors.iter().filter_map(|e| e.get(of)).sum();
        sum / errors.len().max(1) as f64
    };
    let mut text = String::new();
    if !errors.is_empty() {
        text.push_str(&format!(
            "local reconstruction: error of attention outputs {:.4} -> {:.4} (mean of {} layers, relative, squared, held out)\n",
            mean(0),
            mean(1),
            errors.len()
        ));
    }
    for (layer, why) in outcomes
        .iter()
        .filter_map(|o| Some((o.layer, o.left.as_ref()?)))
    {
        text.push_str(&format!("  layer {layer} not reconstructed: {why}\n"));
    }
    text
}

fn outcome_json(outcome: &Reconstructed) -> Value {
    json!({
        "layer": outcome.layer,
        "error_before": outcome.error.map(|e| e[0]),
        "error_after": outcome.error.map(|e| e[1]),
        "not_reconstructed": outcome.left,
    })
}
