//! `compare`: what is measured, what is left out, and what is said where nothing is left.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::common::{Ran, command, fixture, folder, root, with};

/// Compares ways on a fixture, in few tokens.
fn compare(model: &str, more: &[&str]) -> Ran {
    let tokens = root().join("fixtures/tokens.json");
    let model = fixture(model);
    let mut arguments: Vec<&dyn AsRef<Path>> = vec![
        &"compare",
        &model,
        &"--token-ids",
        &tokens,
        &"--length",
        &"128",
        &"--test-tokens",
        &"128",
        &"--reconstruct",
        &"0",
    ];
    arguments.extend(more.iter().map(|m| m as &dyn AsRef<Path>));
    with(&arguments)
}

#[test]
fn a_way_that_the_model_cannot_take_is_told_with_its_reason() {
    let options = [
        "--ways",
        "weights,kept-heads",
        "--cache-bits",
        "16,8",
        "--json",
    ];
    let ran = compare(
        "dynamo18-dv",
        &[&options[..], &["--cache-ratios", "50%"]].concat(),
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let told = ran.json();
    assert_eq!(told["rows"].as_array().unwrap().len(), 1, "{told:#}");
    let left = &told["left_out"][0];
    assert_eq!(
        json!([left["way"], left["bits"]]),
        json!(["kept-heads", 8]),
        "{told:#}"
    );
    let reason = left["reason"].as_str().unwrap();
    assert!(reason.contains("GroupQueryAttention"), "{reason}");
}

#[test]
fn a_comparison_of_nothing_is_refused() {
    let ran = compare(
        "dynamo18-dv",
        &["--ways", "kept-heads", "--cache-bits", "8"],
    );
    assert_ne!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("GroupQueryAttention"), "{ran:?}");
    assert_eq!(ran.stdout, "");
}

#[test]
fn a_combination_that_no_model_takes_is_told_and_alone_it_is_refused() {
    let ran = compare("genai-llama", &["--ways", "plain", "--cache-bits", "6"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
    let words = "plain with 6 bits: ";
    assert!(ran.stderr.contains(words), "{ran:?}");
    assert!(!ran.stderr.contains("reading text"), "{ran:?}");
    let both = ["--ways", "kept-heads,plain", "--cache-bits", "16,6"];
    let ran = compare(
        "genai-llama",
        &[&both[..], &["--cache-ratios", "50%"]].concat(),
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    for words in [
        "not compared: kept-heads with 16 bits: ",
        "not compared: plain with 6 bits: ",
    ] {
        assert!(ran.stdout.contains(words), "{words}: {ran:?}");
    }
}

/// GroupQueryAttention has a head size that is a multiple of 8.
#[test]
fn a_row_of_another_rank_than_asked_says_why_and_which_option_it_needs() {
    let options = ["--ways", "calibrated", "--cache-bits", "4"];
    let ratio = ["--cache-ratios", "62.5%"];
    let ran = compare("genai-llama", &[&options[..], &ratio].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    for words in [
        "62.5% at 4 bits: rank 16 in place of 20, ",
        "multiple of 8",
        "--target gqa",
        "row 2 of 2 (calibrated, 4 bits, rank 16): rewriting: 2 attentions",
    ] {
        let told = [&ran.stdout[..], &ran.stderr].concat();
        assert!(told.contains(words), "{words}: {ran:?}");
    }
    // All tokens stand in one range of positions.
    assert!(!ran.stdout.contains("worst"), "{ran:?}");
    let told = compare("genai-llama", &[&options[..], &ratio, &["--json"]].concat()).json();
    assert_eq!(
        json!([
            told["rows"][1]["rank"],
            told["rows"][1]["target"],
            told["rounded"][0]["asked_rank"]
        ]),
        json!([16, "gqa", 20])
    );
}

#[test]
fn a_cache_that_the_key_of_transmla_fills_is_refused_by_its_size() {
    let ran = compare(
        "optimum-llama",
        &["--ways", "transmla", "--cache-ratios", "10%"],
    );
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("more than 25.0%"), "{ran:?}");
}

/// Their number is known before the model reads any.
#[test]
fn too_few_tokens_are_told_before_they_are_read_with_how_many_are_enough() {
    let ids = root().join("fixtures/tokens.json");
    let place = folder();
    let short = place.path().join("short.json");
    let few: Vec<i64> = serde_json::from_slice(&fs::read(&ids).unwrap()).unwrap();
    fs::write(&short, json!(few[..300]).to_string()).unwrap();
    let (llama, out) = (fixture("optimum-llama"), place.path().join("out.onnx"));
    let rewrite = |ids: &Path, more: &[&str]| {
        let mut all: Vec<&dyn AsRef<Path>> =
            vec![&"rewrite", &llama, &"-o", &out, &"--token-ids", &ids];
        all.extend(
            ["--rank", "16", "--reconstruct", "0"]
                .iter()
                .map(|m| m as &dyn AsRef<Path>),
        );
        all.extend(more.iter().map(|m| m as &dyn AsRef<Path>));
        with(&all)
    };
    let cut = ["--calibration-tokens", "300"];
    let by_option = [
        rewrite(&ids, &cut),
        compare(
            "optimum-llama",
            &["--calibration-tokens", "300", "--ways", "plain"],
        ),
    ];
    for (ran, enough) in by_option.iter().zip(["512", "384"]) {
        assert_eq!(ran.code, 1, "{ran:?}");
        let words = format!("(--calibration-tokens {enough})");
        assert!(ran.stderr.contains(&words), "{ran:?}");
        assert!(!ran.stderr.contains("reading text"), "{ran:?}");
    }
    assert_eq!(rewrite(&ids, &["--calibration-tokens", "512"]).code, 0);
    let ran = rewrite(&short, &[]);
    assert!(
        ran.code == 1 && ran.stderr.contains("give more text"),
        "{ran:?}"
    );
    assert!(!ran.stderr.contains("reading text"), "{ran:?}");
    assert_eq!(rewrite(&short, &["--force"]).code, 0);
}

#[test]
fn ratios_of_the_same_ranks_are_measured_once() {
    let options = ["--ways", "plain", "--cache-bits", "16", "--json"];
    let ratios = ["--cache-ratios", "0.5,0.501,0.75"];
    let told = compare("optimum-llama", &[&options[..], &ratios[..]].concat()).json();
    assert_eq!(told["rows"].as_array().unwrap().len(), 2, "{told:#}");
}

/// The command of a comparison of few ways, run in `place`.
fn comparison(place: &Path, more: &[&str]) -> Command {
    let mut command = command();
    command
        .current_dir(place)
        .arg("compare")
        .arg(fixture("optimum-llama"))
        .arg("--token-ids")
        .arg(root().join("fixtures/tokens.json"))
        .args([
            "--length",
            "128",
            "--test-tokens",
            "128",
            "--cache-bits",
            "16",
        ])
        .args(["--ways", "plain,reconstructed", "--cache-ratios", "50%"])
        .args(more);
    command
}

/// How many rows a run has measured.
fn measured(ran: &Ran) -> usize {
    let stage = "reading held-out text with both models: ";
    ran.stderr.matches(stage).count()
}

#[test]
#[ignore = "takes half a minute"]
fn a_stopped_comparison_goes_on_behind_its_last_row() {
    let place = folder();
    let kept = || -> Vec<String> {
        let names = fs::read_dir(place.path()).unwrap();
        names
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let few = ["--reconstruct", "20"];
    let whole = Ran::from(comparison(place.path(), &few).output().unwrap());
    assert_eq!((whole.code, measured(&whole)), (0, 2), "{whole:?}");
    assert!(kept().is_empty(), "{:?}", kept());
    // The first row is printed at once, and the second one takes some seconds.
    let many = ["--reconstruct", "4000"];
    let stop = |signal: &str| {
        let mut child = comparison(place.path(), &many)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let row = lines.find(|line| line.as_ref().unwrap().starts_with("plain "));
        let id = child.id().to_string();
        let killed = Command::new("kill").args([signal, &id]).status();
        assert!(killed.unwrap().success());
        let status = child.wait().unwrap();
        let mut told = String::new();
        child.stderr.unwrap().read_to_string(&mut told).unwrap();
        (status.code(), row.unwrap().unwrap(), told)
    };
    let (code, row, told) = stop("-INT");
    assert_eq!(code, Some(130), "{told}");
    assert!(whole.stdout.contains(&row), "{row}");
    let names = kept();
    let work = names.iter().find(|n| n.starts_with(".gqa2mla-work-"));
    assert!(names.len() == 1 && told.contains(work.unwrap()), "{told}");
    assert!(told.contains("--clean"), "{told}");
    // Another command has rows of its own.
    let other = Ran::from(comparison(place.path(), &few).output().unwrap());
    assert_eq!((&other.stdout, measured(&other)), (&whole.stdout, 2));
    assert_eq!(kept(), names);
    // The same one measures what is left, also after one that could clear nothing away.
    let (code, again, told) = stop("-KILL");
    assert_eq!((code, again), (None, row), "{told}");
    let stage = "reading held-out text";
    assert!(
        !told.contains(stage) && !told.contains("reading text:"),
        "{told}"
    );
    let rest = Ran::from(comparison(place.path(), &many).output().unwrap());
    let resumed = "resumed 1 of 2 rows from a run that was stopped";
    assert!(rest.stderr.contains(resumed), "{rest:?}");
    let apart = folder();
    let whole = Ran::from(comparison(apart.path(), &many).output().unwrap());
    assert_eq!((measured(&rest), measured(&whole)), (1, 2), "{rest:?}");
    assert_eq!(rest.stdout, whole.stdout);
    assert!(
        kept().iter().all(|n| !n.starts_with(".gqa2mla-")),
        "{:?}",
        kept()
    );
    let (code, _, told) = stop("-INT");
    assert_eq!(code, Some(130), "{told}");
    // What a rewrite has left is not a comparison's.
    let layers = place.path().join(".gqa2mla-work-layers-0badcafe");
    fs::create_dir(&layers).unwrap();
    let clean = Ran::from(comparison(place.path(), &["--clean"]).output().unwrap());
    assert!(layers.is_dir(), "{clean:?}");
    let ours = ["rewrite", "model.onnx", "-o", "out.onnx", "--clean"];
    let of_rewrite = Ran::from(
        command()
            .current_dir(place.path())
            .args(ours)
            .output()
            .unwrap(),
    );
    assert!(of_rewrite.code == 0 && !layers.exists(), "{of_rewrite:?}");
    assert_eq!(clean.code, 0, "{clean:?}");
    assert!(clean.stdout.contains(".gqa2mla-work-"), "{clean:?}");
    assert!(kept().iter().all(|n| !n.starts_with(".gqa2mla-work-")));
}

/// The rotation tables of this model have 256 rows: longer sequences cannot be run.
#[test]
fn sequences_end_where_the_position_tables_do() {
    let place = folder();
    let (tokens, out) = (
        root().join("fixtures/tokens.json"),
        place.path().join("stats"),
    );
    let calibrate = |more: &[&str]| {
        let model = fixture("genai-llama").join("model.onnx");
        let mut arguments: Vec<&dyn AsRef<Path>> =
            vec![&"calibrate", &model, &"--token-ids", &tokens, &"-o", &out];
        arguments.extend(more.iter().map(|m| m as &dyn AsRef<Path>));
        with(&arguments)
    };
    let told = calibrate(&["--json"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert_eq!(told.json()["length"], json!(256));
    for (length, words) in [
        (
            "300",
            "position tables or static caches of the model end after 256",
        ),
        ("1", "expected a number of tokens, 2 or more"),
    ] {
        let ran = calibrate(&["--length", length]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
    let long = compare("genai-llama", &["--context", "300"]);
    assert_eq!(long.code, 2, "{long:?}");
    assert!(long.stderr.contains("ask for at most 256"), "{long:?}");
}

/// Rows of unequal length fail in what is left of GroupQueryAttention as they do in it, so that no batch is padded.
#[test]
fn two_rewrites_of_one_model_are_compared_as_a_rewrite_with_its_model() {
    let place = folder();
    let model = fixture("genai-llama").join("model.onnx");
    let outs = ["once.onnx", "again.onnx"].map(|name| place.path().join(name));
    for out in &outs {
        let ran = with(&[&"rewrite", &model, &"-o", out, &"--no-validate"]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let ran = with(&[&"validate", &outs[0], &outs[1]]);
    assert_eq!(ran.code, 0, "{ran:?}");
}
