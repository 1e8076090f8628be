//! Statistics of a text, the factors made from them, and what is refused.

#[path = "calibration/positions.rs"]
mod positions;
#[path = "calibration/refused.rs"]
mod refused;
#[path = "calibration/sizes.rs"]
mod sizes;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::common::{IN_BF16, fixture, folder, loaded, recognised_fixtures, root, run, with};
use gqa2mla::files::load::LoadedModel;
use gqa2mla::fit::calibrate::{self, Analyzed, CalibrateError, store};
use gqa2mla::fit::statistics::ModelStatistics;
use gqa2mla::measure::text::{Text, TextSource};
use gqa2mla::runtime::{RuntimeKind, RuntimeOptions};
use gqa2mla_passes::analysis::Analysis;
use gqa2mla_passes::operators::Target;
use serde_json::{Value, json};

/// Sequences of the length that the smallest fixture has positions for.
const LENGTH: &str = "64";

fn ids() -> PathBuf {
    root().join("fixtures/tokens.json")
}

fn text(tokens: usize) -> Text {
    Text::read(&TextSource::Ids(ids()), 128, tokens, 64).unwrap()
}

fn runtime() -> RuntimeOptions {
    RuntimeOptions {
        runtime: RuntimeKind::Ort,
        threads: 1,
        ..RuntimeOptions::default()
    }
}

/// Statistics of a fixture in `place`.
fn statistics(name: &str, place: &Path) -> PathBuf {
    let out = place.join(format!("{name}.stats"));
    let ran = with(&[
        &"calibrate",
        &fixture(name),
        &"--token-ids",
        &ids(),
        &"--length",
        &LENGTH,
        &"-o",
        &out,
    ]);
    assert_eq!(ran.code, 0, "{name}: {ran:?}");
    out
}

/// Rewrites at half the cache; gives the report.
fn half(name: &str, out: &Path, more: &[&str]) -> Value {
    let mut arguments: Vec<String> = ["rewrite", "--cache-ratio", "0.5", "--json", "-o"]
        .map(str::to_owned)
        .to_vec();
    arguments.push(out.display().to_string());
    arguments.push(fixture(name).display().to_string());
    arguments.extend(more.iter().map(|&m| m.to_owned()));
    let ran = run(arguments.iter().map(PathBuf::from));
    assert_eq!(ran.code, 0, "{name} {more:?}: {ran:?}");
    ran.json()
}

fn kl_on_text(name: &str, rewritten: &Path) -> f64 {
    let ran = with(&[
        &"validate",
        &fixture(name),
        &rewritten,
        &"--token-ids",
        &ids(),
        &"--test-tokens",
        &"512",
        &"--length",
        &LENGTH,
        &"--json",
    ]);
    assert_eq!(ran.code, 0, "{name}: {ran:?}");
    ran.json()["quality"]["mean_kl"].as_f64().unwrap()
}

/// Analyses `model` and calibrates it.
fn calibrate(
    model: &LoadedModel,
    text: &Text,
    runtime: &RuntimeOptions,
    partial: Option<&Path>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<ModelStatistics, CalibrateError> {
    let analysis = Analysis::of(&model.model, Target::MatMul).unwrap();
    let subject = Analyzed {
        model,
        analysis: &analysis,
    };
    calibrate::calibrate(subject, text, runtime, partial, progress)
}

#[test]
#[ignore = "takes half a minute"]
fn every_dialect_can_be_calibrated_and_its_cache_is_halved() {
    let place = folder();
    for name in recognised_fixtures() {
        // ONNX Runtime's CPU has no kernels for it.
        if name == IN_BF16 {
            continue;
        }
        let statistics = statistics(&name, place.path());
        let out = place.path().join("model.onnx");
        let statistics = statistics.display().to_string();
        let told = half(&name, &out, &["--calibration", &statistics]);
        let bytes = |key: &str| told["validation"]["proof"][key].as_f64().unwrap();
        let (before, after) = (
            bytes("original_cache_bytes"),
            bytes("rewritten_cache_bytes"),
        );
        // Its cache takes a quarter without a loss, which is less than was asked for.
        if name == "dynamo18-deepseek-v3" {
            assert_eq!(after, before / 4.0, "{name}");
            assert_eq!(told["rewrite"]["exact"], json!(true), "{name}");
            continue;
        }
        assert_eq!(after, before / 2.0, "{name}");
        assert_eq!(told["rewrite"]["exact"], json!(false), "{name}");
        for key in ["predicted_key_loss", "predicted_value_loss"] {
            let share = told["rewrite"][key].as_f64().unwrap();
            assert!((0.0..1.0).contains(&share), "{name}: {key} {share}");
        }
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_where_it_was() {
    let place = folder();
    let (model, text) = (loaded("optimum-llama"), text(512));
    let whole = calibrate(&model, &text, &runtime(), None, &mut |_, _| {}).unwrap();
    let partial = place.path().join("partial");
    let stopped = catch_unwind(AssertUnwindSafe(|| {
        calibrate(&model, &text, &runtime(), Some(&partial), &mut |done, _| {
            assert!(done < 5 * text.length, "stopped");
        })
    }));
    assert!(stopped.is_err());
    assert_eq!(store::load(&partial).unwrap().sequences, 5);
    let mut first = None;
    let resumed = calibrate(&model, &text, &runtime(), Some(&partial), &mut |done, _| {
        first.get_or_insert(done);
    });
    assert_eq!(
        first,
        Some(5 * text.length),
        "what was read is not read again"
    );
    assert_eq!(resumed.unwrap(), whole);
    // Another text begins anew.
    let other = calibrate(
        &model,
        &self::text(256),
        &runtime(),
        Some(&partial),
        &mut |_, _| {},
    );
    assert_eq!(other.unwrap().sequences, 4);
}

#[test]
fn a_file_gives_back_what_was_put_into_it() {
    let place = folder();
    let path = place.path().join("stats");
    let made = calibrate(
        &loaded("genai-qwen3"),
        &text(128),
        &runtime(),
        None,
        &mut |_, _| {},
    )
    .unwrap();
    store::save(&made, &path).unwrap();
    assert_eq!(store::load(&path).unwrap(), made);
    // No broken file is believed.
    let bytes = fs::read(&path).unwrap();
    for cut in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..cut]).unwrap();
        let error = store::load(&path).unwrap_err().to_string();
        assert!(error.contains("stats"), "{error}");
    }
}

#[test]
fn the_same_inputs_give_the_same_file() {
    let place = folder();
    let statistics = statistics("optimum-llama", place.path())
        .display()
        .to_string();
    let ids = ids().display().to_string();
    let more = [
        "--calibration",
        &statistics,
        "--token-ids",
        &ids,
        "--length",
        LENGTH,
        "--reconstruct",
        "20",
    ];
    let files = ["one", "two"].map(|name| {
        let out = place.path().join(name).join("model.onnx");
        half("optimum-llama", &out, &more);
        fs::read(out).unwrap()
    });
    assert!(files[0] == files[1], "two runs, two files");
    let left: Vec<_> = fs::read_dir(place.path().join("one"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["model.onnx"], "work that is done is cleared away");
}

#[test]
fn token_ids_come_from_npy_files_as_well() {
    let place = folder();
    for kind in ["int64", "int32", "uint32", "uint16"] {
        let path = place.path().join("ids.npy");
        crate::common::python(
            &format!(
                "import numpy, sys; numpy.save(sys.argv[1], numpy.arange(2, 130, dtype='{kind}').reshape(2, 64) % 128)"
            ),
            &[&path],
        );
        let read = Text::read(&TextSource::Ids(path), 128, 100, 50).unwrap();
        assert_eq!(read.ids[..3], [2, 3, 4], "{kind}");
        assert_eq!((read.ids.len(), read.length), (100, 50));
    }
}

/// The held-out part of the text comes on top.
#[test]
fn factors_are_fitted_to_as_many_tokens_as_asked() {
    let place = folder();
    for tokens in ["128", "256", "512"] {
        let ran = with(&[
            &"rewrite",
            &fixture("optimum-llama"),
            &"-o",
            &place.path().join("out"),
            &"--cache-ratio",
            &"0.5",
            &"--token-ids",
            &root().join("fixtures/tokens.json"),
            &"--length",
            &"64",
            &"--calibration-tokens",
            &tokens,
            &"--reconstruct",
            &"0",
            &"--force",
        ]);
        let read = format!("reading text: {tokens} tokens");
        assert!(ran.stderr.contains(&read), "{ran:?}");
    }
}
