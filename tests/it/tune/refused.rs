//! What `tune` and `factors` refuse, and what they leave behind.

use std::fs;

use super::{half, ids, tune};
use crate::common::{Ran, fixture, folder, run};

#[test]
fn an_operator_without_a_gradient_is_named_before_anything_is_done() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let options = ["--objective", "next-token", "--train", "kv"];
    let ran = tune(&fixture("genai-lfm2"), &out, &options);
    let is_told = |ran: &Ran| {
        assert_eq!(ran.code, 1, "{ran:?}");
        let names = ran.stderr.contains("CausalConvWithState");
        assert!(
            names && ran.stderr.contains("not implemented for training"),
            "{ran:?}"
        );
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    };
    is_told(&ran);
    // A rewrite tells it before it calibrates, and where nothing is to be run at all.
    let model = fixture("genai-lfm2").join("model.onnx");
    let (model, out, ids) = (
        model.display().to_string(),
        out.display().to_string(),
        ids().display().to_string(),
    );
    let asked = ["rewrite", &model, "-o", &out, "--distill", "4", "--force"];
    let asked = [&asked[..], &["--cache-ratio", "50%", "--token-ids", &ids]].concat();
    for more in [&[][..], &["--dry-run"]] {
        let ran = run([&asked[..], more].concat());
        is_told(&ran);
        assert!(!ran.stderr.contains("statistics"), "{ran:?}");
    }
}

/// At full rank latents are the heads themselves, and there is nothing to train.
#[test]
fn a_rewrite_without_factors_is_not_distilled() {
    let place = folder();
    let out = place.path().join("out.onnx").display().to_string();
    let (model, ids) = (
        fixture("dynamo18-llama").join("model.onnx"),
        ids().display().to_string(),
    );
    let model = model.display().to_string();
    let asked = ["rewrite", &model, "-o", &out, "--token-ids", &ids];
    let asked = [&asked[..], &["--length", "32", "--force", "--distill", "4"]].concat();
    for more in [&[][..], &["--dry-run"]] {
        let whole = [&asked[..], &["--cache-ratio", "100%"], more].concat();
        let ran = run(whole);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains("no factors to train"), "{ran:?}");
        assert!(!ran.stderr.contains("statistics"), "{ran:?}");
    }
    // A search may find that nothing smaller keeps the limit: its result is the exact rewrite.
    let searched = [&asked[..], &["--max-kl", "1e-9", "--reconstruct", "0"]].concat();
    let ran = run(searched);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("not distilled"), "{ran:?}");
}

/// A graph that writes rows behind a past with room for them cannot be read in chunks that are appended.
#[test]
fn caches_that_are_written_in_place_are_refused_with_the_way_out() {
    let place = folder();
    let model = half("optimum-llama", place.path(), &["--cache-io", "inplace"]);
    let out = place.path().join("out.onnx");
    let ran = tune(&model, &out, &["--objective", "next-token"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("--cache-io append"), "{ran:?}");
    assert!(!out.exists());
}

#[test]
fn objectives_and_teachers_that_do_not_fit_are_wrong_usage() {
    let place = folder();
    let model = half("optimum-llama", place.path(), &[]);
    let out = place.path().join("out.onnx");
    let teacher = fixture("optimum-llama").display().to_string();
    for (options, told) in [
        (&[][..], "--teacher"),
        (
            &["--objective", "next-token", "--teacher", &teacher][..],
            "without --teacher",
        ),
        (&["--teacher", &teacher, "--rate", "0"][..], "--rate"),
        (&["--teacher", &teacher, "--steps", "0"][..], "--steps"),
    ] {
        let ran = tune(&model, &out, options);
        assert_eq!(ran.code, 2, "{options:?}: {ran:?}");
        assert!(ran.stderr.contains(told), "{options:?}: {ran:?}");
        assert!(!out.exists());
    }
}

#[test]
fn a_model_without_factors_has_nothing_to_train() {
    let place = folder();
    let llama = fixture("optimum-llama");
    let out = place.path().join("out.onnx");
    let ran = tune(&llama, &out, &["--teacher", &llama.display().to_string()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("no factors of a rewrite"), "{ran:?}");
    assert!(!out.exists());
}

#[test]
fn texts_that_are_empty_short_or_of_another_tokenizer_are_refused() {
    let place = folder();
    let model = half("optimum-llama", place.path(), &[])
        .display()
        .to_string();
    let teacher = fixture("optimum-llama").display().to_string();
    let out = place.path().join("out.onnx").display().to_string();
    let (empty, short) = (
        place.path().join("empty.json"),
        place.path().join("short.json"),
    );
    fs::write(&empty, "[]").unwrap();
    fs::write(&short, "[1, 2, 3, 4]").unwrap();
    for (ids, told) in [(&empty, "0"), (&short, "at least 6")] {
        let ids = ids.display().to_string();
        let ran = run([
            "tune",
            &model,
            "--teacher",
            &teacher,
            "--token-ids",
            &ids,
            "-o",
            &out,
        ]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains(told), "{ran:?}");
    }
    let text = place.path().join("text.txt");
    fs::write(&text, "Some words of a text.").unwrap();
    let tokenizer = fixture("genai-qwen2")
        .join("tokenizer.json")
        .display()
        .to_string();
    let text = text.display().to_string();
    let ran = run([
        "tune",
        &model,
        "--teacher",
        &teacher,
        "--text",
        &text,
        "--tokenizer",
        &tokenizer,
        "-o",
        &out,
    ]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("belongs to another model"), "{ran:?}");
    assert!(!fs::exists(&out).unwrap());
}

#[test]
fn a_teacher_of_another_vocabulary_is_refused() {
    let place = folder();
    let model = half("optimum-llama", place.path(), &[]);
    let teacher = fixture("genai-llama").display().to_string();
    let ran = tune(
        &model,
        &place.path().join("out.onnx"),
        &["--teacher", &teacher],
    );
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("not of one vocabulary"), "{ran:?}");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_keeps_the_best_state() {
    let place = folder();
    let name = "optimum-llama";
    let model = half(name, place.path(), &[]);
    let out = place.path().join("out.onnx");
    let teacher = fixture(name).display().to_string();
    let ran = tune(
        &model,
        &out,
        &["--teacher", &teacher, "--rate", "1e38", "--steps", "20"],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let report = ran.json();
    assert_eq!(report["tuned"]["ended"], "not_finite", "{report:#}");
    assert_eq!(report["tuned"]["best"]["step"], 0);
    assert_eq!(fs::read(&model).unwrap(), fs::read(&out).unwrap());
}

#[test]
fn factors_of_another_shape_are_refused_by_name() {
    let place = folder();
    let shown = |path: &std::path::Path| path.display().to_string();
    let model = half("optimum-llama", place.path(), &[]);
    let file = place.path().join("factors.safetensors");
    assert_eq!(
        run(["factors", "export", &shown(&model), "-o", &shown(&file)]).code,
        0
    );
    let other = place.path().join("other.onnx");
    let original = shown(&fixture("optimum-llama"));
    let wider = [
        "rewrite",
        &original,
        "--rank",
        "24",
        "--no-validate",
        "-o",
        &shown(&other),
    ];
    assert_eq!(run(wider).code, 0);
    let out = place.path().join("out.onnx");
    let ran = run([
        "factors",
        "import",
        &shown(&other),
        &shown(&file),
        "-o",
        &shown(&out),
    ]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("has shape") && ran.stderr.contains("/mla/w_"),
        "{ran:?}"
    );
    assert!(!out.exists());
}
