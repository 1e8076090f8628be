//! The report of a rewrite: its data, and the page as a browser shows it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{fixture, folder, root, run};
use serde_json::Value;

const BROWSER: &str = "/usr/bin/chromium";

/// Rewrites a fixture and writes the report of it.
fn reported(report: &Path, more: &[&str]) {
    rewritten(&report.with_extension("out"), report, more);
}

fn rewritten(out: &Path, report: &Path, more: &[&str]) {
    let mut arguments = vec![
        PathBuf::from("rewrite"),
        fixture("optimum-llama"),
        "-o".into(),
        out.to_path_buf(),
    ];
    arguments.extend(["--report".into(), report.to_path_buf()]);
    arguments.extend(more.iter().map(PathBuf::from));
    let ran = run(arguments);
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// Every report has a part that others have not.
const WAYS: [(&str, &[&str]); 3] = [
    ("exact", &["--bench"]),
    (
        "searched",
        &[
            "--max-kl",
            "0.05",
            "--token-ids",
            "fixtures/tokens.json",
            "--length",
            "64",
            "--reconstruct",
            "10",
        ],
    ),
    (
        "free",
        &[
            "--cache-ratio",
            "0.5",
            "--layout",
            "free",
            "--serving",
            "none",
            "--token-ids",
            "fixtures/tokens.json",
            "--length",
            "64",
            "--reconstruct",
            "0",
        ],
    ),
];

fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(key, value)| {
            found.insert(key.clone());
            keys(value, found);
        }),
        Value::Array(values) => values.iter().for_each(|v| keys(v, found)),
        _ => {}
    }
}

#[test]
fn every_key_of_the_data_is_in_its_documentation_and_the_other_way_round() {
    let place = folder();
    let mut found = BTreeSet::new();
    for (name, more) in WAYS {
        let path = place.path().join(format!("{name}.json"));
        reported(&path, more);
        keys(
            &serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap(),
            &mut found,
        );
    }
    let text = fs::read_to_string(root().join("docs/report.md")).unwrap();
    let documented: BTreeSet<String> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    let missing: Vec<_> = found.difference(&documented).collect();
    assert!(missing.is_empty(), "not in docs/report.md: {missing:?}");
    // Words between backquotes that are no keys.
    let others = [
        "gqa2mla rewrite … --report FILE.json",
        "FILE.html",
        "null",
        "asked",
        "usual",
        "matmul",
        "gqa",
        "append",
        "inplace",
        "--max-perplexity-increase",
        "--max-kl",
        "--layout free",
        "--bench",
        "--keep-heads",
        "within",
        // Of a distillation, which needs a build with training: its test is among those of `tune`.
        "--distill",
        "steps",
        "kl_before",
        "kl_after",
        "node",
        "code",
        "reason",
        "advice",
    ];
    let gone: Vec<_> = documented
        .difference(&found)
        .filter(|k| !others.contains(&k.as_str()))
        .collect();
    assert!(gone.is_empty(), "only in docs/report.md: {gone:?}");
}

#[test]
fn the_data_tells_what_is_true_of_the_rewrite() {
    let place = folder();
    let path = place.path().join("free.json");
    reported(&path, WAYS[2].1);
    let report: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let command = report["command"].as_str().unwrap();
    assert!(command.starts_with("gqa2mla rewrite "), "{command}");
    let model = &report["models"][0];
    for layer in model["rewrite"]["layers"].as_array().unwrap() {
        for side in ["key", "value"] {
            let spectrum: Vec<f64> =
                serde_json::from_value(layer[format!("{side}_spectrum")].clone()).unwrap();
            assert_eq!(spectrum.len(), 32, "G*d directions");
            assert!(spectrum.is_sorted_by(|a, b| a >= b), "the largest first");
            // The loss that is predicted is the part of the spectrum that is left out.
            let rank = usize::try_from(layer[format!("{side}_rank")].as_u64().unwrap()).unwrap();
            let lost = spectrum[rank..].iter().sum::<f64>() / spectrum.iter().sum::<f64>();
            let told = layer[format!("predicted_{side}_loss")].as_f64().unwrap();
            assert!((lost - told).abs() < 1e-12, "{lost} {told}");
        }
        let error = layer["measured_output_error"].as_f64().unwrap();
        assert!(error > 1e-3 && error < 1.0, "{error}");
    }
    let quality = &model["quality"];
    assert_eq!(quality["rewritten_cache_bytes"].as_f64(), Some(256.0));
    assert_eq!(report["folder"]["edits"], Value::Array(Vec::new()));
}

#[test]
fn the_times_of_both_models_are_in_the_report_where_they_are_asked_for() {
    let place = folder();
    for name in ["report.json", "report.html"] {
        let report = place.path().join(name);
        let out = place.path().join(format!("{name}.out"));
        let ran = run([
            PathBuf::from("rewrite"),
            fixture("optimum-llama"),
            "-o".into(),
            out,
            "--report".into(),
            report.clone(),
            "--bench".into(),
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.stdout.contains("median ms"), "{}", ran.stdout);
        let text = fs::read_to_string(&report).unwrap();
        if name.ends_with("html") {
            assert!(text.contains("a prompt of 128"), "{name}");
            continue;
        }
        let data: Value = serde_json::from_str(&text).unwrap();
        let phases = data["models"][0]["bench"]["phases"].as_array().unwrap();
        // The context of the fixture is shorter than the usual lengths: half of it is measured.
        assert_eq!(phases.len(), 2, "{phases:?}");
        for phase in phases {
            for timing in phase["timings"].as_array().unwrap() {
                assert!(timing["milliseconds"]["median"].as_f64().unwrap() > 0.0);
            }
        }
    }
}

#[test]
fn an_unwritable_or_unknown_report_is_refused_before_the_work() {
    let place = folder();
    let out = place.path().join("out");
    fs::write(place.path().join("file"), "").unwrap();
    let unknown = place.path().join("made/report.pdf");
    let unwritable = place.path().join("file/report.html");
    for (report, code) in [(unknown, 2), (unwritable, 1)] {
        let ran = run([
            PathBuf::from("rewrite"),
            fixture("optimum-llama"),
            "-o".into(),
            out.clone(),
            "--report".into(),
            report,
        ]);
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(!out.exists() && !place.path().join("made").exists());
    }
    // In the output itself, which is not there yet: with the first rewrite, and with the next.
    for _ in 0..2 {
        rewritten(&out, &out.join("report.html"), &[]);
        assert!(out.join("report.html").is_file() && out.join("model.onnx").is_file());
    }
}

/// The page in a window of `width`, in the light or the dark: its pixels, RGB, row by row.
fn shown(page: &Path, width: usize, dark: bool) -> Vec<[u8; 3]> {
    let picture = page.with_extension(format!("{width}-{dark}.png"));
    let scheme = if dark { 0 } else { 1 };
    browse(&[
        &format!("--blink-settings=preferredColorScheme={scheme}"),
        &format!("--window-size={width},4800"),
        &format!("--screenshot={}", picture.display()),
        &format!("file://{}", page.display()),
    ]);
    let decoder = png::Decoder::new(BufReader::new(File::open(&picture).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    assert_eq!(info.width as usize, width);
    let channels = info.color_type.samples();
    data.chunks(channels).map(|p| [p[0], p[1], p[2]]).collect()
}

fn browse(arguments: &[&str]) -> String {
    let profile = folder();
    let output = Command::new(BROWSER)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--hide-scrollbars",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{BROWSER}: {e}: run `make test`"));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs Chromium"]
fn the_page_is_readable_in_the_light_in_the_dark_and_on_a_phone() {
    let place = folder();
    for (name, more) in WAYS {
        let page = place.path().join(format!("{name}.html"));
        reported(&page, more);
        let text = fs::read_to_string(&page).unwrap();
        // One file, and nothing that would be fetched or run.
        for part in ["<script", "<link", "src=", "url(", "@import"] {
            assert!(!text.contains(part), "{name}: {part}");
        }
        assert!(
            !text
                .replace("http://www.w3.org/2000/svg", "")
                .contains("http"),
            "{name}"
        );
        let charts = text.matches("<svg").count();
        assert_eq!(
            charts,
            [0, 5, 5][WAYS.iter().position(|w| w.0 == name).unwrap()],
            "{name}"
        );
        for (dark, paper, key) in [
            (false, [255, 255, 255], [11, 99, 196]),
            (true, [21, 24, 28], [109, 176, 255]),
        ] {
            for width in [1200, 800, 500] {
                let pixels = shown(&page, width, dark);
                assert_eq!(pixels[0], paper, "{name}, dark {dark}");
                let close = |p: &[u8; 3]| p.iter().zip(key).all(|(a, b)| a.abs_diff(b) < 12);
                let drawn = pixels.iter().filter(|p| close(p)).count();
                assert_eq!(
                    drawn > 200,
                    charts > 0,
                    "{name}, dark {dark}, {width}: {drawn} pixels in the keys' colour"
                );
            }
        }
        // On a phone nothing runs out of the page at its side: a copy tells how wide it is.
        let probe = page.with_extension("probe.html");
        let script = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>";
        fs::write(&probe, text.replace("</body>", script)).unwrap();
        let told = browse(&[
            "--window-size=500,900",
            "--dump-dom",
            &format!("file://{}", probe.display()),
        ]);
        assert!(
            told.contains("<title>500 of 500</title>"),
            "{name}: {}",
            told.get(..600).unwrap_or(&told)
        );
    }
}
