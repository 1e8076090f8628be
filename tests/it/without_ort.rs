//! A machine without ONNX Runtime: what still works, and what the command says about it.

use std::path::Path;

use crate::common::{Ran, command, fixture, folder};

/// Runs the command where no variable, folder or Python names ONNX Runtime.
fn bare(place: &Path, arguments: &[&str]) -> Ran {
    command()
        .env_clear()
        .current_dir(place)
        .args(arguments)
        .output()
        .unwrap()
        .into()
}

#[test]
#[cfg(feature = "tract")]
fn tract_validates_in_its_place_and_says_so() {
    let place = folder();
    let llama = fixture("optimum-llama").display().to_string();
    for runtime in ["auto", "tract"] {
        let ran = bare(
            place.path(),
            &[
                "rewrite",
                &llama,
                "-o",
                "out.onnx",
                "--runtime",
                runtime,
                "-q",
            ],
        );
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
        assert!(
            ran.stdout
                .lines()
                .any(|l| l.starts_with("tract 0.23") && l.contains("passed")),
            "{}",
            ran.stdout
        );
        assert!(!ran.stdout.contains("ONNX Runtime"), "{}", ran.stdout);
    }
    let told = bare(
        place.path(),
        &[
            "validate",
            &llama,
            "out.onnx",
            "--runtime",
            "tract",
            "--json",
        ],
    )
    .json();
    for which in ["original_runtime", "rewritten_runtime"] {
        assert!(
            told["proof"][which]
                .as_str()
                .unwrap()
                .starts_with("tract 0.23"),
            "{told:#}"
        );
    }
    assert_eq!(told["passed"], serde_json::json!(true));
}

#[test]
fn asking_for_onnx_runtime_says_where_it_was_looked_for_and_how_to_get_it() {
    let place = folder();
    let llama = fixture("optimum-llama").display().to_string();
    let ran = bare(
        place.path(),
        &["rewrite", &llama, "-o", "out.onnx", "--runtime", "ort"],
    );
    assert_eq!(ran.code, 1, "{ran:?}");
    for part in [
        "ONNX Runtime was not found",
        "the system's libraries",
        "pip install onnxruntime==",
    ] {
        assert!(ran.stderr.contains(part), "no '{part}' in: {}", ran.stderr);
    }
    assert_eq!(
        std::fs::read_dir(place.path()).unwrap().count(),
        0,
        "something was written"
    );
}

#[test]
#[cfg(feature = "tract")]
fn a_model_that_tract_cannot_run_is_not_passed_off_as_proved() {
    let place = folder();
    let model = fixture("genai-llama").display().to_string();
    let ran = bare(place.path(), &["rewrite", &model, "-o", "out.onnx"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("tract") && ran.stderr.contains("packed QKV"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        std::fs::read_dir(place.path()).unwrap().count(),
        0,
        "something was written"
    );
    let ran = bare(
        place.path(),
        &["rewrite", &model, "-o", "out.onnx", "--no-validate"],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(place.path().join("out.onnx").is_file());
}

#[test]
#[cfg(not(feature = "tract"))]
fn a_build_without_tract_says_so_and_what_to_do() {
    let place = folder();
    let llama = fixture("optimum-llama").display().to_string();
    let told = bare(place.path(), &["--version"]).stdout;
    assert!(told.contains("built without tract"), "{told}");
    for (runtime, way_out) in [
        ("auto", "pip install onnxruntime=="),
        ("tract", "--runtime ort"),
    ] {
        let ran = bare(
            place.path(),
            &["rewrite", &llama, "-o", "out.onnx", "--runtime", runtime],
        );
        assert_eq!(ran.code, 1, "{ran:?}");
        for part in ["built without tract", way_out] {
            assert!(ran.stderr.contains(part), "no '{part}' in: {}", ran.stderr);
        }
        assert_eq!(
            std::fs::read_dir(place.path()).unwrap().count(),
            0,
            "something was written"
        );
    }
}

#[test]
fn inspecting_needs_no_runtime() {
    let place = folder();
    for name in ["optimum-llama", "genai-llama"] {
        let ran = bare(
            place.path(),
            &["inspect", &fixture(name).display().to_string()],
        );
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
        assert!(
            ran.stdout
                .contains("2 of 2 attentions recognised, 512 bytes of cache a token"),
            "{}",
            ran.stdout
        );
    }
}

/// tract counts no rows from the end of a tensor. What it cannot run is no fault of the rewrite, so that nothing is said of
/// that, and nothing is written.
#[test]
#[cfg(feature = "tract")]
fn a_rewrite_that_tract_cannot_run_is_not_called_wrong() {
    let place = folder();
    let llama = fixture("optimum-llama").join("model.onnx");
    let llama = llama.display().to_string();
    let ran = bare(
        place.path(),
        &[
            "rewrite",
            &llama,
            "-o",
            "out.onnx",
            "--cache-io",
            "inplace",
            "--runtime",
            "tract",
            "--quiet",
        ],
    );
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("tract runs simple models only") && ran.stderr.lines().count() == 1,
        "{ran:?}"
    );
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}
