//! The result of a compression, as text and as JSON.

use serde_json::{Value, json};

use crate::cli::frontier;
use crate::cli::proof::{proof_json, proof_text};
use crate::cli::quality::quality_text;
use crate::cli::reach::{context_text, reach_text};
use crate::cli::rewrite::summary::Summary;
use crate::compress::acceptance::Verdict;
use crate::compress::frontier::Point;
use crate::compress::promise::Promise;
use crate::compress::run::Compression;
use crate::compress::search::Search;
use crate::compress::widths::{Widths, WidthsCompared};
use crate::fit::reconstruct::ReconstructedLayer as Reconstructed;
use crate::report::{change, counted, measured, short};

/// The text output for a model. `with_kept_heads` is the command line that rewrites it with `--keep-heads`, without the bits.
pub fn text(compression: &Compression, summary: &Summary, with_kept_heads: &str) -> String {
    let mut text = summary.text();
    if let Some(reach) = compression.reach.filter(|_| summary.lossy) {
        text.push_str(&context_text(&compression.context));
        text.push_str(&reach_text(&reach));
    }
    if let Some(search) = &compression.search {
        text.push_str(&search_text(search, summary.after, with_kept_heads));
    }
    text.push_str(&compression.widths.map(widths_text).unwrap_or_default());
    text.push_str(&outcomes_text(&compression.compressed.outcomes));
    if let Some(distilled) = &compression.compressed.distilled {
        text.push_str(&format!(
            "distilled in {}: KL {} -> {} nats (held out of the training)\n",
            counted(distilled.steps, "step"),
            short(distilled.kl_before),
            short(distilled.kl_after)
        ));
    }
    if compression.compressed.has_no_factors {
        text.push_str("not distilled: the rewrite has no factors to train\n");
    }
    match &compression.quality {
        Some(Ok(quality)) => {
            text.push_str(&format!("on held-out text: {}\n", quality_text(quality)));
        }
        Some(Err(why)) => text.push_str(&format!("not measured on text: {why}\n")),
        None => {}
    }
    text.push_str(&match &compression.verdict {
        Verdict::Compared(proof) => format!("\n{}\n", proof_text(proof, summary.lossy)),
        Verdict::DoesNotRun(why) => format!("{why}\n"),
        Verdict::NotValidated => "not validated (--no-validate)\n".to_owned(),
    });
    text
}

/// The output for a model as JSON.
pub fn data(compression: &Compression, summary: &Summary) -> Value {
    let (validation, failure) = match &compression.verdict {
        Verdict::Compared(proof) => (Some(proof_json(proof)), None),
        Verdict::DoesNotRun(why) => (None, Some(why)),
        Verdict::NotValidated => (None, None),
    };
    let outcomes = compression.compressed.outcomes.iter();
    json!({
        "rewrite": summary.json(),
        "context": compression.context,
        "statistics": compression.reach,
        "search": compression.search.as_ref().map(|s| search_json(s, summary.after)),
        "layouts": compression.widths.map(widths_json),
        "reconstruction": outcomes.map(outcome_json).collect::<Vec<_>>(),
        "distillation": compression.compressed.distilled,
        "validation": validation,
        "quality": compression.quality.as_ref().and_then(|q| q.as_ref().ok()),
        "not_measured": compression.quality.as_ref().and_then(|q| q.as_ref().err()).map(ToString::to_string),
        "failure": failure,
    })
}

/// The output for a model as JSON for a report, with spectra and measured errors of each layer.
pub fn detailed(compression: &Compression, summary: &Summary) -> Value {
    let mut value = data(compression, summary);
    let sites = &compression.compressed.staged.rewritten.sites;
    let layers = value
        .pointer_mut("/rewrite/layers")
        .and_then(Value::as_array_mut);
    let measured = compression.layer_errors.as_ref();
    let errors = measured.and_then(|m| m.as_ref().ok());
    for (layer, site) in layers.into_iter().flatten().zip(sites) {
        let mut found = errors.into_iter().flatten();
        let found = found.find(|e| e.layer == site.site.layer);
        let added = [
            ("key_spectrum", json!(site.key.spectrum)),
            ("value_spectrum", json!(site.value.spectrum)),
            ("measured_score_error", json!(found.map(|e| e.scores))),
            ("measured_output_error", json!(found.map(|e| e.outputs))),
        ];
        if let Some(layer) = layer.as_object_mut() {
            layer.extend(added.map(|(key, value)| (key.to_owned(), value)));
        }
    }
    let why = measured.and_then(|m| m.as_ref().err());
    let continuation = compression.continuation.as_ref();
    let added = [
        ("layers_not_measured", json!(why.map(ToString::to_string))),
        (
            "continuation",
            json!(continuation.and_then(|c| c.as_ref().ok())),
        ),
        (
            "not_continued",
            json!(
                continuation
                    .and_then(|c| c.as_ref().err())
                    .map(ToString::to_string)
            ),
        ),
        ("text", json!(compression.text)),
    ];
    if let Some(value) = value.as_object_mut() {
        value.extend(added.map(|(key, value)| (key.to_owned(), value)));
    }
    value
}

/// A loss as text, in the quantity that `promise` limits.
pub fn loss_text(promise: Promise, loss: f64) -> String {
    match promise {
        Promise::PerplexityIncrease(_) => change(loss),
        Promise::Kl(_) => format!("{} nats", short(loss)),
    }
}

fn search_text(search: &Search, bytes: u64, with_kept_heads: &str) -> String {
    let Search { promise, tried, .. } = search;
    let mut text = format!(
        "searched for {} at most {}:\n{}\n",
        promise.name(),
        loss_text(*promise, promise.limit()),
        frontier::searched_header()
    );
    let mut tried: Vec<_> = tried.iter().chain(&search.kept_heads).collect();
    tried.sort_by(|a, b| b.bytes.total_cmp(&a.bytes));
    let best = search.best_point();
    for point in tried {
        let line = frontier::searched(point, best.is_some_and(|best| std::ptr::eq(best, point)));
        text.push_str(&format!("{line}\n"));
    }
    match (search.best, search.bits.number()) {
        (None, Some(bits)) => {
            text.push_str(&format!("no rank keeps the promise with {bits} bits\n"));
        }
        (None, None) => {
            text.push_str("nothing smaller keeps the promise: every number is kept\n");
        }
        _ => {}
    }
    if let Some(point) = kept_heads_do(search, bytes) {
        text.push_str(&format!(
            "{0}-bit heads keep the promise too, at {1} bytes a token: {with_kept_heads} --cache-bits {0}\n",
            point.bits.unwrap_or_default(),
            measured(point.bytes)
        ));
    }
    text
}

/// The measurement of heads as integers, without a latent, if they keep the promise at no more than `bytes` bytes per
/// token.
fn kept_heads_do(search: &Search, bytes: u64) -> Option<&Point> {
    let point = search.kept_heads.as_ref();
    point.filter(|p| p.broken_by.nothing() && p.bytes <= bytes as f64)
}

fn search_json(search: &Search, bytes: u64) -> Value {
    let best = search.best_point();
    let told = |point: &Point| {
        let mut value = json!(point);
        if let Some(object) = value.as_object_mut() {
            object.insert("keeps".to_owned(), json!(point.broken_by.nothing()));
        }
        value
    };
    json!({
        "promise": search.promise.name(), "limit": search.promise.limit(),
        "rank": best.map(|b| b.rank), "bits": best.and_then(|b| b.bits),
        "curve": search.tried.iter().map(told).collect::<Vec<_>>(),
        "kept_heads": search.kept_heads.as_ref().map(told),
        "kept_heads_do": kept_heads_do(search, bytes).is_some(),
    })
}

fn widths_text(widths: WidthsCompared) -> String {
    let kept = match widths.kept() {
        Widths::Free | Widths::FreeLayers => "free",
        Widths::Uniform => "uniform, as free is no better",
    };
    format!(
        "layouts: KL {} free, {} uniform, on held-out text: kept {kept}\n",
        short(widths.free_kl),
        short(widths.uniform_kl)
    )
}

fn widths_json(widths: WidthsCompared) -> Value {
    let kept = match widths.kept() {
        Widths::Free | Widths::FreeLayers => "free",
        Widths::Uniform => "uniform",
    };
    json!({ "free_kl": widths.free_kl, "uniform_kl": widths.uniform_kl, "kept": kept })
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
            "local reconstruction: error of attention outputs {:.4} -> {:.4} (mean of {}, relative, squared, held out)\n",
            mean(0),
            mean(1),
            counted(errors.len(), "layer")
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
