//! The HTML page of a report, rendered from the data of the JSON report only.

use minijinja::value::Value as Shown;
use minijinja::{AutoEscape, Environment, context};
use serde_json::Value;

use gqa2mla_passes::numbers::grouped;

use crate::report::charts::{Chart, Ink, Line};
use crate::report::error::ReportError;
use crate::report::numbers::{change, short};

const PAGE: &str = include_str!("page.html");

/// The HTML page of `report`, the data of a JSON report.
///
/// # Errors
/// [`ReportError`] if the data does not fit the template.
pub fn html(report: &Value) -> Result<String, ReportError> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("grouped", grouped);
    environment.add_filter("percent", |x: f64| format!("{:.1}%", 100.0 * x));
    environment.add_filter("change", change);
    environment.add_filter("small", |x: f64| format!("{x:.2e}"));
    environment.add_filter("short", short);
    environment.add_filter("root", f64::sqrt);
    environment.add_template("page.html", PAGE)?;
    let models = report["models"].as_array().cloned().unwrap_or_default();
    let drawn = models.iter().map(drawn).collect::<Result<Vec<_>, _>>()?;
    let page = environment.get_template("page.html")?;
    Ok(page.render(context! { report, drawn })?)
}

/// The charts of one model, as SVG.
fn drawn(model: &Value) -> Result<Shown, ReportError> {
    let safe = |chart: Option<Result<String, ReportError>>| -> Result<Option<Shown>, ReportError> {
        Ok(chart.transpose()?.map(Shown::from_safe_string))
    };
    Ok(context! {
        curve => safe(curve(model))?,
        keys => safe(spectra(model, "key", Ink::Key))?,
        values => safe(spectra(model, "value", Ink::Value))?,
        ranks => safe(ranks(model))?,
        scores => safe(errors(model, "predicted_key_loss", "measured_score_error", Ink::Key))?,
        outputs => safe(errors(model, "predicted_value_loss", "measured_output_error", Ink::Value))?,
    })
}

fn layers(model: &Value) -> &[Value] {
    let layers = model.pointer("/rewrite/layers").and_then(Value::as_array);
    layers.map_or(&[], Vec::as_slice)
}

/// The chart of the loss at each size that a search has tried.
fn curve(model: &Value) -> Option<Result<String, ReportError>> {
    let search = model.get("search").filter(|s| s.is_object())?;
    let limit = search["limit"].as_f64()?;
    let percent = if search["promise"] == "KL" {
        1.0
    } else {
        100.0
    };
    let tried = search["curve"].as_array()?.iter();
    let mut points: Vec<(f64, f64)> = tried
        .filter_map(|p| Some((p["bytes"].as_f64()?, percent * p["loss"].as_f64()?)))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (first, last) = (points.first()?.0, points.last()?.0);
    let promised = vec![(first, percent * limit), (last, percent * limit)];
    let lines = [
        Line {
            ink: Ink::Key,
            points: points.clone(),
            dots: false,
        },
        Line {
            ink: Ink::Key,
            points,
            dots: true,
        },
        Line {
            ink: Ink::Value,
            points: promised,
            dots: false,
        },
    ];
    let chart = Chart {
        across: "bytes a token",
        up: if percent > 1.0 {
            "increase of perplexity, %"
        } else {
            "KL, nats"
        },
        powers: false,
    };
    Some(chart.draw(&lines))
}

/// The chart of the singular values of every layer, relative to the largest, with a dot at the rank.
fn spectra(model: &Value, side: &str, ink: Ink) -> Option<Result<String, ReportError>> {
    let mut lines = Vec::new();
    let mut ends = Vec::new();
    for layer in layers(model) {
        let spectrum = layer[format!("{side}_spectrum")].as_array()?;
        let largest = spectrum.first().and_then(Value::as_f64).unwrap_or(0.0);
        let points: Vec<(f64, f64)> = spectrum
            .iter()
            .enumerate()
            // Smaller values are rounding errors.
            .filter_map(|(n, v)| {
                Some((
                    n as f64 + 1.0,
                    (v.as_f64()? / largest).sqrt().max(1e-6).log10(),
                ))
            })
            .filter(|p| p.1.is_finite())
            .collect();
        let rank = layer[format!("{side}_rank")].as_u64()?;
        let end = usize::try_from(rank)
            .ok()
            .and_then(|r| points.get(r.checked_sub(1)?));
        ends.extend(end);
        lines.push(Line {
            ink,
            points,
            dots: false,
        });
    }
    lines.retain(|line| !line.points.is_empty());
    if lines.is_empty() {
        return None;
    }
    lines.push(Line {
        ink: Ink::Text,
        points: ends,
        dots: true,
    });
    let chart = Chart {
        across: "direction",
        up: "singular value, relative",
        powers: true,
    };
    Some(chart.draw(&lines))
}

/// The chart of the ranks of each layer; `None` if all are equal.
fn ranks(model: &Value) -> Option<Result<String, ReportError>> {
    let line = |side: &str, ink: Ink| Line {
        ink,
        points: layers(model)
            .iter()
            .filter_map(|l| Some((l["layer"].as_f64()?, l[side].as_f64()?)))
            .collect(),
        dots: true,
    };
    let (keys, values) = (line("key_rank", Ink::Key), line("value_rank", Ink::Value));
    // A uniform rank needs no chart.
    let first = keys.points.first()?.1;
    let all = keys.points.iter().chain(&values.points);
    if all.clone().all(|p| p.1 == first) {
        return None;
    }
    let chart = Chart {
        across: "layer",
        up: "rank",
        powers: false,
    };
    Some(chart.draw(&[keys, values]))
}

/// The chart of the error of each layer: predicted as a line, measured as dots.
fn errors(
    model: &Value,
    predicted: &str,
    measured: &str,
    ink: Ink,
) -> Option<Result<String, ReportError>> {
    let points = |key: &str, of: fn(f64) -> f64| -> Vec<(f64, f64)> {
        let known = layers(model).iter();
        known
            .filter_map(|l| Some((l["layer"].as_f64()?, of(l[key].as_f64()?))))
            .collect()
    };
    let line = Line {
        ink,
        points: points(predicted, f64::sqrt),
        dots: false,
    };
    let dots = Line {
        ink,
        points: points(measured, |e| e),
        dots: true,
    };
    if line.points.iter().chain(&dots.points).all(|p| p.1 == 0.0) {
        return None;
    }
    let chart = Chart {
        across: "layer",
        up: "relative error",
        powers: false,
    };
    Some(chart.draw(&[line, dots]))
}
