//! The HTML page of a report, rendered from the data of the JSON report only.

use minijinja::value::Value as Shown;
use minijinja::{AutoEscape, Environment, context};
use serde_json::Value;

use gqa2mla_passes::numbers::grouped;

use crate::report::charts::{Chart, Ink, Line};
use crate::report::error::ReportError;
use crate::report::numbers::{change, measured, percent, short, size, small};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");

/// The environment of all pages: their filters, and their style.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("grouped", grouped);
    environment.add_filter("percent", percent);
    environment.add_filter("change", change);
    environment.add_filter("small", small);
    environment.add_filter("short", short);
    environment.add_filter("root", f64::sqrt);
    environment.add_filter("size", size);
    environment.add_filter("measured", measured);
    environment.add_filter("limit", limit);
    environment.add_filter("passage", passage);
    environment.add_global("style", Shown::from_safe_string(STYLE.to_owned()));
    environment
}

/// The HTML page of `report`, the data of a JSON report.
///
/// # Errors
/// [`ReportError`] if the data does not fit the template.
pub fn html(report: &Value) -> Result<String, ReportError> {
    let mut environment = environment();
    environment.add_template("page.html", PAGE)?;
    let models = report["models"].as_array().cloned().unwrap_or_default();
    let drawn = models.iter().map(drawn).collect::<Result<Vec<_>, _>>()?;
    let page = environment.get_template("page.html")?;
    Ok(page.render(context! { report, drawn })?)
}

/// The limit of a promise: KL in nats, others in percent.
fn limit(limit: f64, promise: &str) -> String {
    match promise {
        "KL" => format!("{limit} nats"),
        _ => format!("{}%", 100.0 * limit),
    }
}

/// The text of a passage, or its token ids.
#[expect(clippy::needless_pass_by_value, reason = "the signature of a filter")]
fn passage(passage: Shown) -> Result<String, minijinja::Error> {
    let text = passage.get_attr("text")?;
    if let Some(text) = text.as_str() {
        return Ok(text.to_owned());
    }
    let tokens = passage.get_attr("tokens")?;
    let ids: Vec<String> = tokens.try_iter()?.map(|id| format!("{id} ")).collect();
    Ok(ids.concat())
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

/// The name of a layer: its number and its module.
fn layer_name(layer: &Value) -> String {
    let module = layer["name"].as_str().unwrap_or_default();
    format!("layer {}, {module}", layer["layer"])
}

/// The chart of the loss at each size that a search has tried. Dots of sizes that break the promise have the colour of
/// values, the others that of keys.
fn curve(model: &Value) -> Option<Result<String, ReportError>> {
    let search = model.get("search").filter(|s| s.is_object())?;
    let limit = search["limit"].as_f64()?;
    let percent = if search["promise"] == "KL" {
        1.0
    } else {
        100.0
    };
    let tried = search["curve"].as_array()?.iter();
    let tried = tried.chain(search.get("kept_heads").filter(|heads| heads.is_object()));
    let mut dots = [Ink::Key, Ink::Value].map(|ink| Line {
        ink,
        points: Vec::new(),
        dots: true,
        names: Vec::new(),
    });
    for point in tried {
        let (bytes, loss) = (point["bytes"].as_f64()?, point["loss"].as_f64()?);
        let [keeps, breaks] = &mut dots;
        let line = match point["keeps"] == true {
            true => keeps,
            false => breaks,
        };
        line.points.push((bytes, percent * loss));
        line.names.push(point_name(point));
    }
    let all = || dots.iter().flat_map(|line| &line.points).map(|p| p.0);
    let ends = [
        all().fold(f64::INFINITY, f64::min),
        all().fold(f64::NEG_INFINITY, f64::max),
    ];
    let promised = Line {
        ink: Ink::Text,
        points: ends.map(|bytes| (bytes, percent * limit)).to_vec(),
        dots: false,
        names: Vec::new(),
    };
    let [keeps, breaks] = dots;
    let lines = [promised, keeps, breaks];
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

/// The text of one size that a search has tried.
fn point_name(point: &Value) -> String {
    let rank = match point["way"] == "kept-heads" {
        true => "heads".to_owned(),
        false => format!("rank {}", point["rank"]),
    };
    let bits = point["bits"].as_u64();
    let bits = bits.map_or_else(String::new, |bits| format!(", {bits} bits"));
    let number = |key: &str| point[key].as_f64().unwrap_or(f64::NAN);
    format!(
        "{rank}{bits}: {} bytes a token, perplexity {}, KL {}",
        measured(number("bytes")),
        change(number("perplexity_increase")),
        short(number("kl"))
    )
}

/// The chart of the singular values of every layer, relative to the largest, with a dot at the rank.
fn spectra(model: &Value, side: &str, ink: Ink) -> Option<Result<String, ReportError>> {
    let mut lines = Vec::new();
    let (mut ends, mut names) = (Vec::new(), Vec::new());
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
        if let Some(end) = end {
            ends.push(*end);
            names.push(format!("{}: rank {rank}", layer_name(layer)));
        }
        lines.push(Line {
            ink,
            points,
            dots: false,
            names: Vec::new(),
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
        names,
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
        names: layers(model).iter().map(layer_name).collect(),
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
    predicted: &'static str,
    measured: &'static str,
    ink: Ink,
) -> Option<Result<String, ReportError>> {
    let known = |key: &'static str| layers(model).iter().filter(move |l| l[key].is_f64());
    let points = |key: &'static str, of: fn(f64) -> f64| -> Vec<(f64, f64)> {
        known(key)
            .filter_map(|l| Some((l["layer"].as_f64()?, of(l[key].as_f64()?))))
            .collect()
    };
    let line = Line {
        ink,
        points: points(predicted, f64::sqrt),
        dots: false,
        names: Vec::new(),
    };
    let dots = Line {
        ink,
        points: points(measured, |e| e),
        dots: true,
        names: known(measured).map(layer_name).collect(),
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
