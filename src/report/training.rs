//! The HTML page of a training run.

use minijinja::context;
use minijinja::value::Value as Shown;
use serde_json::Value;

use crate::report::charts::{Chart, Ink, Line};
use crate::report::error::ReportError;
use crate::report::page::environment;

const PAGE: &str = include_str!("training.html");
/// Number of steps of which the chart of the steps shows the mean.
const AVERAGED: usize = 10;

/// The HTML page of `report`, the data of a training run's JSON report, with the curves of the runs beside it.
///
/// # Errors
/// [`ReportError`] if the data does not fit the template.
pub fn html(report: &Value) -> Result<String, ReportError> {
    let mut environment = environment();
    environment.add_template("training.html", PAGE)?;
    let runs: Vec<&Value> = report["beside"].as_array().into_iter().flatten().collect();
    let runs: Vec<&Value> = runs.into_iter().chain([report]).collect();
    let drawn = |up: &'static str, points: fn(&Value) -> Vec<(f64, f64)>, dots: bool| {
        let lines = runs.iter().rev().enumerate().flat_map(|(number, run)| {
            // The run itself has the first colour, and the others the second.
            let ink = if number == 0 { Ink::Key } else { Ink::Value };
            curve(ink, points(&run["tuned"]), dots)
        });
        let lines: Vec<Line> = lines.collect();
        if lines.iter().all(|line| line.points.is_empty()) {
            return Ok(None);
        }
        let chart = Chart {
            across: "step",
            up,
            powers: false,
        };
        Ok::<_, ReportError>(Some(Shown::from_safe_string(chart.draw(&lines)?)))
    };
    let charts = context! {
        held_out => drawn("held-out loss, nats", held_out, true)?,
        steps => drawn("loss of steps, nats", steps, false)?,
        right => drawn("right answers, %", right, true)?,
    };
    let page = environment.get_template("training.html")?;
    Ok(page.render(context! { report, charts })?)
}

/// The lines of one curve: the line itself, and its dots.
fn curve(ink: Ink, points: Vec<(f64, f64)>, dots: bool) -> Vec<Line> {
    let line = |dots: bool| Line {
        ink,
        points: points.clone(),
        dots,
        names: Vec::new(),
    };
    match dots {
        true => vec![line(false), line(true)],
        false => vec![line(false)],
    }
}

/// The values with `key` of the checks of a run, by step.
fn checks<'c>(tuned: &'c Value, key: &'static str) -> impl Iterator<Item = (f64, f64)> + 'c {
    let checks = tuned["checks"].as_array().into_iter().flatten();
    checks.filter_map(move |check| Some((check["step"].as_f64()?, check[key].as_f64()?)))
}

fn held_out(tuned: &Value) -> Vec<(f64, f64)> {
    checks(tuned, "loss").collect()
}

fn right(tuned: &Value) -> Vec<(f64, f64)> {
    let percent = checks(tuned, "right").map(|(step, share)| (step, 100.0 * share));
    percent.collect()
}

/// The mean losses of successive groups of steps, at the last step of each.
fn steps(tuned: &Value) -> Vec<(f64, f64)> {
    let losses = tuned["losses"].as_array().into_iter().flatten();
    let losses: Vec<f64> = losses.filter_map(Value::as_f64).collect();
    let means = losses.chunks(AVERAGED).scan(0, |step, group| {
        *step += group.len();
        Some((*step as f64, group.iter().sum::<f64>() / group.len() as f64))
    });
    means.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::html;

    #[test]
    fn a_page_has_the_curves_of_both_runs_and_escapes_names() {
        let tuned = |losses: [f64; 3]| {
            json!({
                "tensors": 2, "elements": 10, "positions": 0, "ended": "finished", "losses": losses,
                "checks": [{"step": 0, "loss": 2.0, "right": 0.0}, {"step": 3, "loss": 1.0, "right": 0.5}],
                "best": {"step": 3, "loss": 1.0, "right": 0.5},
            })
        };
        let report = json!({
            "version": "1", "command": "gqa2mla tune", "date": "2026-01-01T00:00:00Z", "model": "<m>",
            "out": "o.onnx", "teacher": null, "objective": "next-token", "seconds": 2.0,
            "sequences": 4, "held_out": 2, "tokens": 100,
            "tuned": tuned([3.0, 2.0, 1.0]),
            "beside": [{"name": "other.json", "tuned": tuned([3.0, 2.5, 2.0])}],
        });
        let page = html(&report).unwrap();
        assert_eq!(page.matches("<svg").count(), 3);
        assert!(page.contains("&lt;m&gt;") && page.contains("other.json"));
        assert!(page.contains("var(--key)") && page.contains("var(--value)"));
    }
}
