//! Statistics of a text, the factors made from them, and what is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod common;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use common::{IN_BF16, fixture, folder, loaded, recognised_fixtures, root, run, with};
use gqa2mla::calibrate::{calibrate, store};
use gqa2mla::runtime::{RuntimeKind, RuntimeOptions};
use gqa2mla::text::{Text, TextSource};
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
        &"--text-tokens",
        &"512",
        &"--text-length",
        &LENGTH,
        &"--json",
    ]);
    assert_eq!(ran.code, 0, "{name}: {ran:?}");
    ran.json()["quality"]["mean_kl"].as_f64().unwrap()
}

#[test]
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
        assert_eq!(after, before / 2.0, "{name}");
        assert_eq!(told["rewrite"]["exact"], json!(false), "{name}");
        for key in ["predicted_key_loss", "predicted_value_loss"] {
            let share = told["rewrite"][key].as_f64().unwrap();
            assert!((0.0..1.0).contains(&share), "{name}: {key} {share}");
        }
    }
}

/// On the fixtures, whose weights are random, data says what to keep and weights do not.
#[test]
fn statistics_lose_less_than_weights_and_reconstruction_less_again() {
    let place = folder();
    for name in ["optimum-llama", "dynamo18-qwen3", "genai-llama"] {
        let statistics = statistics(name, place.path()).display().to_string();
        let out = place.path().join("model.onnx");
        let lost = |more: &[&str]| {
            half(name, &out, more);
            kl_on_text(name, &out)
        };
        let weights = lost(&["--factors", "weights"]);
        let calibrated = lost(&["--calibration", &statistics]);
        let ids = ids().display().to_string();
        let text = ["--token-ids", &ids, "--text-length", LENGTH];
        let mut more = vec!["--calibration", &statistics, "--reconstruct", "150"];
        more.extend(text);
        let reconstructed = lost(&more);
        assert!(
            calibrated < weights,
            "{name}: {calibrated} from statistics, {weights} from weights"
        );
        assert!(
            reconstructed < calibrated,
            "{name}: {reconstructed} reconstructed, {calibrated} before"
        );
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
            assert!(done < 5, "stopped");
        })
    }));
    assert!(stopped.is_err());
    assert_eq!(store::load(&partial).unwrap().sequences, 5);
    let mut first = None;
    let resumed = calibrate(&model, &text, &runtime(), Some(&partial), &mut |done, _| {
        first.get_or_insert(done);
    });
    assert_eq!(first, Some(5), "what was read is not read again");
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
        "--text-length",
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
fn a_search_keeps_its_promise_on_the_held_out_text() {
    let place = folder();
    let (name, ids) = ("optimum-llama", ids().display().to_string());
    for (option, limit, key) in [
        ("--max-kl", "0.02", "loss"),
        ("--max-perplexity-increase", "1%", "loss"),
    ] {
        let out = place.path().join("model.onnx");
        let ran = with(&[
            &"rewrite",
            &fixture(name),
            &"-o",
            &out,
            &option,
            &limit,
            &"--token-ids",
            &ids,
            &"--text-length",
            &LENGTH,
            &"--reconstruct",
            &"0",
            &"--json",
        ]);
        assert_eq!(ran.code, 0, "{option}: {ran:?}");
        let told = ran.json();
        let search = &told["search"];
        let (limit, rank) = (search["limit"].as_f64().unwrap(), &search["rank"]);
        let curve = search["curve"].as_array().unwrap();
        let kept = curve.iter().find(|p| p["rank"] == *rank).unwrap();
        assert!(kept[key].as_f64().unwrap() <= limit, "{option}: {search:#}");
        // The next smaller rank that was tried breaks the promise: the search went as far as it could.
        let smaller = curve
            .iter()
            .filter(|p| p["rank"].as_u64() < rank.as_u64())
            .all(|p| p[key].as_f64().unwrap() > limit);
        assert!(smaller, "{option}: {search:#}");
        assert_eq!(told["rewrite"]["rank_max"], *rank);
    }
}

#[test]
fn a_free_layout_spends_the_same_budget_and_loses_no_more_than_one_width_for_all() {
    let place = folder();
    let ids = ids().display().to_string();
    let name = "optimum-llama";
    let data = ["--token-ids", &ids, "--text-length", LENGTH];
    let data = [&data[..], &["--reconstruct", "0"]].concat();
    let free = place.path().join("free.onnx");
    let told = half(name, &free, &[&data[..], &["--layout", "free"]].concat());
    let layouts = &told["layouts"];
    let (lost, uniform) = (&layouts["free_kl"], &layouts["uniform_kl"]);
    assert_eq!(
        layouts["kept"] == "free",
        lost.as_f64() < uniform.as_f64(),
        "{layouts:#}"
    );
    // On this model the layers do differ, so that there is something to gain.
    assert_eq!(layouts["kept"], "free", "{layouts:#}");
    let rewrite = &told["rewrite"];
    assert_eq!(
        rewrite["cache_bytes_per_token_after"].as_u64(),
        rewrite["cache_bytes_per_token_before"]
            .as_u64()
            .map(|b| b / 2)
    );
    assert_ne!(rewrite["rank_min"], rewrite["rank_max"]);
    // What is written is what was measured: its caches have the widths that were allotted.
    let report = with(&[
        &"validate",
        &fixture(name),
        &free,
        &"--token-ids",
        &ids,
        &"--json",
    ]);
    let report = report.json();
    assert_eq!(
        report["quality"]["rewritten_cache_bytes"].as_f64(),
        rewrite["cache_bytes_per_token_after"].as_f64()
    );
    // The model says what was expected of it, beside what is measured.
    let noted = report["made_by"]["layers"][0].as_object().unwrap();
    assert_eq!(noted.len(), 5, "{noted:?}");
    for (key, value) in noted {
        assert_eq!(&rewrite["layers"][0][key], value, "{key}");
    }
}

#[test]
fn factors_from_weights_alone_look_at_contexts_of_the_length_that_is_served() {
    let place = folder();
    let out = place.path().join("model.onnx");
    let lost = |context: &str| {
        let told = half(
            "optimum-llama",
            &out,
            &["--factors", "weights", "--context", context],
        );
        told["rewrite"]["predicted_key_loss"].as_f64().unwrap()
    };
    // At one position nothing is turned; the longer the context, the more directions keys take, and the more is lost.
    let (one, few, many) = (lost("1"), lost("8"), lost("4096"));
    assert!(one < few && few < many, "{one} {few} {many}");
    assert_eq!(lost("4096"), many);
}

#[test]
fn what_does_not_belong_together_is_refused_and_nothing_is_written() {
    let place = folder();
    let out = place.path().join("model.onnx");
    let statistics = statistics("optimum-llama", place.path());
    let write = |name: &str, content: &str| {
        let path = place.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let tokenizer = |tokens: usize| {
        let vocabulary: serde_json::Map<String, Value> =
            (0..tokens).map(|n| (format!("w{n}"), json!(n))).collect();
        let model = json!({ "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" });
        json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
                "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null, "model": model })
        .to_string()
    };
    let good = write("tokenizer.json", &tokenizer(128));
    let large = write("large.json", &tokenizer(300));
    let small = write("small.json", &tokenizer(40));
    let words = write("words.txt", "w1 w2 w3 w4 w5 w6 w7 w8 w9");
    let empty = write("empty.txt", "");
    let beyond = write("beyond.json", "[1, 2, 500]");
    let no_list = write("no_list.json", "{\"a\": 1}");
    let statistics = statistics.display().to_string();
    let ids = ids().display().to_string();
    let half = ["--cache-ratio", "0.5"];
    let cases: [(&str, Vec<&str>, i32, &str); 16] = [
        (
            "optimum-llama",
            vec!["--layout", "free", "--token-ids", &ids],
            2,
            "divides a budget",
        ),
        (
            "genai-llama",
            [
                &half[..],
                &["--layout", "free", "--target", "gqa", "--token-ids", &ids],
            ]
            .concat(),
            2,
            "--target matmul",
        ),
        (
            "dynamo18-llama",
            [&half[..], &["--calibration", &statistics]].concat(),
            1,
            "another model",
        ),
        (
            "optimum-llama",
            [&half[..], &["--text", &words, "--tokenizer", &large]].concat(),
            1,
            "300 tokens and the model 128",
        ),
        (
            "optimum-llama",
            [&half[..], &["--text", &words, "--tokenizer", &small]].concat(),
            1,
            "40 tokens and the model 128",
        ),
        (
            "optimum-llama",
            [&half[..], &["--text", &empty, "--tokenizer", &good]].concat(),
            1,
            "0 tokens are too few",
        ),
        (
            "optimum-llama",
            [&half[..], &["--text", &words]].concat(),
            2,
            "--tokenizer",
        ),
        (
            "optimum-llama",
            [&half[..], &["--text", &words, "--tokenizer", &words]].concat(),
            1,
            "not a tokenizer.json",
        ),
        (
            "optimum-llama",
            [&half[..], &["--token-ids", &beyond]].concat(),
            1,
            "token id 500",
        ),
        (
            "optimum-llama",
            [&half[..], &["--token-ids", &no_list]].concat(),
            1,
            "one JSON list",
        ),
        (
            "optimum-llama",
            [&half[..], &["--calibration", &ids]].concat(),
            1,
            "not a gqa2mla statistics",
        ),
        (
            "optimum-llama",
            [&half[..], &["--factors", "calibrated"]].concat(),
            2,
            "no text",
        ),
        (
            "optimum-llama",
            vec!["--cache-ratio", "0"],
            2,
            "cache ratio 0",
        ),
        (
            "optimum-llama",
            vec!["--cache-ratio", "1.5"],
            2,
            "cache ratio 1.5",
        ),
        ("optimum-llama", vec!["--max-kl=-1"], 2, "not negative"),
        (
            "optimum-llama",
            vec!["--rank", "8", "--cache-ratio", "0.5"],
            2,
            "cannot be used with",
        ),
    ];
    for (name, more, code, words) in cases {
        let mut arguments: Vec<String> = ["rewrite".to_owned()].to_vec();
        arguments.push(fixture(name).display().to_string());
        arguments.extend(["-o".to_owned(), out.display().to_string()]);
        arguments.extend(more.iter().map(|&m| m.to_owned()));
        let ran = run(arguments.iter().map(PathBuf::from));
        assert_eq!(ran.code, code, "{more:?}: {ran:?}");
        assert!(ran.stderr.contains(words), "{more:?}: {}", ran.stderr);
        assert!(!out.exists(), "{more:?} wrote something");
    }
}

#[test]
fn token_ids_come_from_npy_files_as_well() {
    let place = folder();
    for kind in ["int64", "int32", "uint32", "uint16"] {
        let path = place.path().join("ids.npy");
        common::python(
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

#[test]
fn at_full_rank_every_factorization_is_exact_in_both_forms() {
    let place = folder();
    for name in [
        "optimum-qwen2",
        "dynamo18-llama-fp16",
        "genai-phi3",
        "dynamo18-dv",
    ] {
        let statistics = statistics(name, place.path());
        let told = with(&[&"inspect", &fixture(name), &"--json"]).json();
        let full = told["sites"][0]["full_rank"].to_string();
        for factors in ["weights", "plain", "weighted", "calibrated"] {
            for form in ["absorbed", "expanded"] {
                let out = place.path().join("model.onnx");
                let mut arguments: Vec<PathBuf> = vec!["rewrite".into(), fixture(name)];
                arguments.extend(["-o".into(), out, "--rank".into(), full.clone().into()]);
                arguments.extend(["--factors".into(), factors.into()]);
                arguments.extend(["--form".into(), form.into(), "--json".into()]);
                if factors != "weights" {
                    arguments.extend(["--calibration".into(), statistics.clone()]);
                }
                let ran = run(arguments);
                assert_eq!(ran.code, 0, "{name}, {factors}, {form}: {ran:?}");
                let told = ran.json();
                assert_eq!(
                    told["rewrite"]["exact"],
                    json!(true),
                    "{name}, {factors}, {form}"
                );
                let passed = &told["validation"]["passed"];
                assert_eq!(*passed, json!(true), "{name}, {factors}, {form}: {told:#}");
            }
        }
    }
}
