//! Input that is not what it should be: what the command says, and that nothing makes the library panic.

#[path = "bad_input/strangers.rs"]
mod strangers;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::common::{fixture, folder, with};
use gqa2mla::files::load::load;
use gqa2mla::validate::scenario::Random;
use gqa2mla_passes::{RewriteOptions, by_weights, inspect, rewrite};

/// Copies the files of a fixture into `folder/name`, and gives its model.
fn copy(name: &str, folder: &Path) -> PathBuf {
    let target = folder.join(name);
    fs::create_dir(&target).unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let file = entry.unwrap().path();
        fs::copy(&file, target.join(file.file_name().unwrap())).unwrap();
    }
    target.join("model.onnx")
}

fn cut(path: &Path, keep: impl Fn(usize) -> usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..keep(bytes.len())]).unwrap();
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut random = Random::new(1);
    (0..count).map(|_| random.next_u64() as u8).collect()
}

/// What is wrong, the model that is so, and parts of what the command has to say besides the path.
type Broken = (&'static str, PathBuf, &'static [&'static str]);

fn broken_models(place: &Path) -> Vec<Broken> {
    let new = |name: &str, bytes: &[u8]| {
        let path = place.join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let cut_short = copy("optimum-llama", place);
    cut(&cut_short, |length| length / 2);
    let short_data = copy("genai-llama", place);
    cut(&short_data.with_extension("onnx.data"), |length| length / 2);
    let no_data = copy("genai-qwen3", place);
    fs::remove_file(no_data.with_extension("onnx.data")).unwrap();
    let none = place.join("none");
    fs::create_dir(&none).unwrap();
    vec![
        (
            "a missing file",
            place.join("missing.onnx"),
            &["No such file"],
        ),
        (
            "an empty file",
            new("empty.onnx", b""),
            &["not an ONNX model", "the file is empty"],
        ),
        (
            "random bytes",
            new("random.onnx", &random_bytes(4096)),
            &["not an ONNX model"],
        ),
        (
            "a text",
            new("text.onnx", b"version https://git-lfs.github.com/spec/v1\n"),
            &["not an ONNX model"],
        ),
        ("half of a model", cut_short, &["not an ONNX model"]),
        (
            "half of a data file",
            short_data,
            &["'model.onnx.data' has", "are needed", "truncated"],
        ),
        (
            "no data file",
            no_data,
            &["model.onnx.data", "cannot be used"],
        ),
        (
            "a folder without a model",
            none,
            &["expected one .onnx file", "found none"],
        ),
    ]
}

#[test]
fn a_broken_model_is_named_with_what_is_wrong_by_every_subcommand() {
    let place = folder();
    let out = place.path().join("out");
    let good = fixture("optimum-llama");
    for (what, model, parts) in broken_models(place.path()) {
        let runs = [
            with(&[&"inspect", &model]),
            with(&[&"rewrite", &model, &"-o", &out.join("model.onnx")]),
            with(&[&"validate", &model, &good]),
            with(&[&"validate", &good, &model]),
            with(&[&"print", &model]),
            with(&[&"diff", &good, &model]),
        ];
        for ran in runs {
            assert_eq!(ran.code, 1, "{what}: {ran:?}");
            assert!(ran.stdout.is_empty(), "{what}: {ran:?}");
            let path = model.display().to_string();
            for part in parts.iter().chain([&path.as_str()]) {
                assert!(
                    ran.stderr.contains(part),
                    "{what}: no '{part}' in: {}",
                    ran.stderr
                );
            }
            assert!(!ran.stderr.contains("panicked"), "{what}: {}", ran.stderr);
        }
        assert!(!out.exists(), "{what}: something was written");
    }
}

#[test]
fn a_rank_that_does_not_fit_is_named_with_those_that_do() {
    let place = folder();
    let out = place.path().join("below/model.onnx");
    for rank in ["0", "33", "18446744073709551615"] {
        let ran = with(&[
            &"rewrite",
            &fixture("optimum-llama"),
            &"-o",
            &out,
            &"--rank",
            &rank,
        ]);
        assert_eq!(ran.code, 2, "{ran:?}");
        for part in [&format!("rank {rank}"), "layer 0", "1 to 32"] {
            assert!(ran.stderr.contains(part), "no '{part}' in: {}", ran.stderr);
        }
        assert_eq!(
            fs::read_dir(place.path()).unwrap().count(),
            0,
            "something was written"
        );
    }
}

/// Reads, inspects and rewrites `bytes` as a model; how far that went.
fn attempt(path: &Path, bytes: &[u8]) -> &'static str {
    fs::write(path, bytes).unwrap();
    let Ok(mut model) = load(path) else {
        return "not loaded";
    };
    if inspect(&model.model).is_err() {
        return "not well-formed";
    }
    let options = RewriteOptions {
        allow_partial: true,
        ..RewriteOptions::default()
    };
    let done = rewrite(
        &mut model.model,
        &options,
        &mut by_weights,
        &mut |tensor| Ok(tensor),
        &mut |_, _| {},
    );
    if done.is_ok() { "rewritten" } else { "refused" }
}

/// A whole model takes a few milliseconds; a hundred times that is a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// Attempts each of `inputs`; how many ended in which way.
fn survive(
    inputs: impl Iterator<Item = (String, Vec<u8>)> + Send + 'static,
) -> Vec<(&'static str, usize)> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let place = folder();
        let path = place.path().join("model.onnx");
        for (what, bytes) in inputs {
            sender.send((what.clone(), None)).unwrap();
            let ending = catch_unwind(AssertUnwindSafe(|| attempt(&path, &bytes)));
            sender.send((what, Some(ending.map_err(|_| ())))).unwrap();
        }
    });
    let mut counts: Vec<(&'static str, usize)> = Vec::new();
    let mut current = String::from("the first");
    loop {
        match receiver.recv_timeout(PATIENCE) {
            Ok((what, None)) => current = what,
            Ok((what, Some(Err(())))) => panic!("{what}: the library panicked"),
            Ok((_, Some(Ok(ending)))) => match counts.iter_mut().find(|(e, _)| *e == ending) {
                Some((_, count)) => *count += 1,
                None => counts.push((ending, 1)),
            },
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{current}: no end after {PATIENCE:?}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => return counts,
        }
    }
}

fn original() -> Vec<u8> {
    fs::read(fixture("optimum-llama").join("model.onnx")).unwrap()
}

fn count(counts: &[(&str, usize)], ending: &str) -> usize {
    counts
        .iter()
        .find(|(e, _)| *e == ending)
        .map_or(0, |(_, n)| *n)
}

#[test]
fn every_beginning_of_a_model_ends_in_an_error() {
    let bytes = original();
    let length = bytes.len();
    let counts = survive((0..64).map(move |i| {
        let end = length * i / 64;
        (format!("the first {end} bytes"), bytes[..end].to_vec())
    }));
    eprintln!("{counts:?}");
    assert_eq!(counts.iter().map(|(_, n)| n).sum::<usize>(), 64);
    assert_eq!(
        count(&counts, "rewritten"),
        0,
        "a part of a model was taken for a model"
    );
}

#[test]
fn flipped_bytes_never_make_the_library_panic_or_hang() {
    let bytes = original();
    let counts = survive((0..200u64).map(move |seed| {
        let mut random = Random::new(seed);
        let mut flipped = bytes.clone();
        // Most of a file is weights, where a flip means nothing to the library: half of the flips go to the graph's text,
        // which is in the first part of the file.
        let below = if seed % 2 == 0 {
            flipped.len()
        } else {
            flipped.len() / 8
        };
        for _ in 0..1 + seed % 4 {
            let at = random.next_u64() as usize % below;
            flipped[at] ^= 1 << (random.next_u64() % 8);
        }
        (format!("seed {seed}"), flipped)
    }));
    eprintln!("{counts:?}");
    assert_eq!(counts.iter().map(|(_, n)| n).sum::<usize>(), 200);
    // Nothing would be shown if all flips hit weights, or if none did.
    assert!(
        count(&counts, "rewritten") >= 10 && count(&counts, "not loaded") >= 10,
        "{counts:?}"
    );
}
