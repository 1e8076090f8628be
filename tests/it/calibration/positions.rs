//! Factors and promises for contexts longer than the text that was read.

use super::*;

use gqa2mla_passes::factor::Statistics;

/// The statistics of a fixture, read in sequences of 64 tokens.
fn sums(name: &str) -> Vec<Statistics> {
    let read = calibrate(&loaded(name), &text(512), &runtime(), None, &mut |_, _| {});
    read.unwrap().layers.into_values().collect()
}

/// Halves and neighbours, a part of each head, the operators that look tables up, frequencies that are scaled, heads that are
/// not rotated at all.
#[test]
fn the_rotation_is_read_from_every_dialect() {
    for name in [
        "optimum-llama",
        "dynamo18-llama",
        "dynamo18-glm",
        "dynamo18-llama3-rope",
        "dynamo23-llama",
        "genai-llama",
        "genai-phi3",
    ] {
        for layer in sums(name) {
            assert!(layer.position_free.is_some(), "{name}");
        }
    }
}

/// With the rotation undone, no position is left in the keys: what is rotated again to the positions that were read is what
/// was read, but for the content that the first and the last tokens of a text do not share.
#[test]
fn moments_over_the_positions_that_were_read_are_those_that_were_read() {
    for layer in sums("genai-llama") {
        let again = layer.position_free.as_ref().unwrap().over(64);
        let energy = |square: &ndarray::Array2<f64>| square.diag().sum();
        let (found, read) = (energy(&again.key_square), energy(&layer.key_square));
        // Rotation keeps lengths, in single precision.
        assert!((found - read).abs() < 1e-5 * read, "{found} and {read}");
        let off = (&again.key_square - &layer.key_square)
            .mapv(|x| x * x)
            .sum();
        let all = layer.key_square.mapv(|x| x * x).sum();
        assert!(off < 0.1 * all, "{off} of {all}");
    }
}

/// Sequences of the context's length are measured, and told in ranges of positions.
#[test]
fn what_is_lost_is_told_by_position_up_to_the_context() {
    let place = folder();
    let ids = ids().display().to_string();
    let out = place.path().join("model.onnx");
    let data = [
        "--token-ids",
        &ids,
        "--length",
        LENGTH,
        "--reconstruct",
        "0",
    ];
    let told = half("optimum-llama", &out, &data);
    // The configuration beside the model tells 256 positions; a third of 1,024 tokens is one sequence of them.
    assert_eq!(told["context"]["positions"], 256);
    assert_eq!(told["context"]["source"]["configuration"], "config.json");
    let positions = told["quality"]["positions"].as_array().unwrap();
    assert_eq!(positions.len(), 4);
    assert_eq!(positions[3]["last"], 255);
    let tokens: u64 = positions
        .iter()
        .map(|p| p["tokens"].as_u64().unwrap())
        .sum();
    assert_eq!(Some(tokens), told["quality"]["tokens"].as_u64());
    let asked = half(
        "optimum-llama",
        &out,
        &[&data[..], &["--context", "100"]].concat(),
    );
    assert_eq!(asked["context"]["source"], "asked");
    assert_eq!(asked["quality"]["positions"].as_array().unwrap().len(), 2);
}

#[test]
fn a_promise_for_more_positions_than_the_text_has_is_refused() {
    let place = folder();
    let ids = ids().display().to_string();
    let out = place.path().join("model.onnx");
    let ran = with(&[
        &"rewrite",
        &fixture("optimum-llama"),
        &"-o",
        &out,
        &"--max-kl",
        &"0.05",
        &"--token-ids",
        &ids,
        &"--length",
        &LENGTH,
        &"--context",
        &"5000",
    ]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("5000 positions"), "{ran:?}");
    assert!(!out.exists());
}

#[test]
fn statistics_of_too_few_tokens_are_refused_and_forced() {
    let place = folder();
    let few = place.path().join("few");
    let out = place.path().join("model.onnx");
    let ran = with(&[
        &"calibrate",
        &fixture("optimum-llama"),
        &"--token-ids",
        &ids(),
        &"--calibration-tokens",
        &"64",
        &"--length",
        &LENGTH,
        &"-o",
        &few,
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout.contains("2.0 tokens for each direction"),
        "{ran:?}"
    );
    let rewrite = |more: &[&str]| {
        let mut arguments: Vec<PathBuf> = vec!["rewrite".into(), fixture("optimum-llama")];
        arguments.extend([
            "-o".into(),
            out.clone(),
            "--cache-ratio".into(),
            "0.5".into(),
        ]);
        arguments.extend(["--calibration".into(), few.clone()]);
        arguments.extend(more.iter().map(PathBuf::from));
        run(arguments)
    };
    let ran = rewrite(&[]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("at least 10 are needed"), "{ran:?}");
    assert!(!out.exists());
    let ran = rewrite(&["--force"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("these are few"), "{ran:?}");
}
