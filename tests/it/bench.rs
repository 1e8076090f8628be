//! `gqa2mla bench`: what it measures and how it is told. No test looks at a time.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::{fixture, folder, with};

/// What `gqa2mla bench --json ARGUMENTS` answers.
fn benched(arguments: &[&dyn AsRef<Path>]) -> Value {
    let all: [&dyn AsRef<Path>; 4] = [&"bench", &"--json", &"--rounds", &"4"];
    let ran = with(&[&all, arguments].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn every_model_runs_every_length_in_every_batch_beside_the_first() {
    let place = folder();
    let (original, half) = (fixture("optimum-llama"), place.path().join("half.onnx"));
    let ran = with(&[
        &"rewrite",
        &original,
        &"-o",
        &half,
        &"--rank",
        &"16",
        &"--no-validate",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let report = benched(&[
        &original,
        &half,
        &"--past",
        &"8,16",
        &"--prefill",
        &"4",
        &"--batch",
        &"1,2",
    ]);
    let models = report["models"].as_array().unwrap();
    let bytes: Vec<_> = models.iter().map(|m| &m["cache_bytes_per_token"]).collect();
    assert_eq!(bytes, [&json!(512), &json!(256)]);
    for model in models {
        assert_eq!(model["io"], "bound", "{model}");
        // Each in a process of its own, which holds the runtime.
        assert!(
            model["peak_memory_bytes"].as_u64().unwrap() > 1 << 20,
            "{model}"
        );
    }
    let phases = report["phases"].as_array().unwrap();
    let shown = phases.iter().map(|p| {
        let number = |key: &str| p[key].as_u64().unwrap();
        [
            number("batch"),
            number("past"),
            number("tokens"),
            number("rounds"),
        ]
    });
    assert_eq!(
        shown.collect::<Vec<_>>(),
        [
            [1, 8, 1, 4],
            [1, 16, 1, 4],
            [1, 0, 4, 1],
            [2, 8, 1, 4],
            [2, 16, 1, 4],
            [2, 0, 4, 1]
        ]
    );
    for phase in phases {
        let timings = phase["timings"].as_array().unwrap();
        assert_eq!(timings.len(), 2);
        assert_eq!(
            timings[0]["ratio"],
            json!({ "median": 1.0, "min": 1.0, "max": 1.0 })
        );
        for timing in timings {
            let time = |key: &str| timing["milliseconds"][key].as_f64().unwrap();
            assert!(
                0.0 < time("min") && time("min") <= time("median"),
                "{timing}"
            );
            assert!(time("median") <= time("max"), "{timing}");
        }
    }
}

/// Past and present share a buffer where `GroupQueryAttention` makes the present, before and after a rewrite, unless that is
/// not wanted.
#[test]
fn a_buffer_is_shared_where_the_operator_writes_in_place() {
    let place = folder();
    let genai = fixture("genai-llama");
    let rewritten = |target: &str| {
        let out = place.path().join(format!("{target}.onnx"));
        let arguments: [&dyn AsRef<Path>; 7] = [
            &"rewrite",
            &genai,
            &"-o",
            &out,
            &"--target",
            &target,
            &"--no-validate",
        ];
        assert_eq!(with(&arguments).code, 0);
        out
    };
    let (gqa, matmul) = (rewritten("gqa"), rewritten("matmul"));
    let io = |how: &str| {
        let report = benched(&[
            &genai,
            &gqa,
            &matmul,
            &"--past",
            &"8",
            &"--prefill",
            &"4",
            &"--io",
            &how,
        ]);
        let models = report["models"].as_array().unwrap().clone();
        let io = |m: &Value| m["io"].as_str().unwrap().to_owned();
        models.iter().map(io).collect::<Vec<_>>()
    };
    assert_eq!(io("shared"), ["shared", "shared", "bound"]);
    assert_eq!(io("bound"), ["bound"; 3]);
    assert_eq!(io("copied"), ["copied"; 3]);
}

#[test]
fn the_table_names_the_models_and_numbers_their_rows() {
    let llama = fixture("optimum-llama");
    let ran = with(&[
        &"bench",
        &llama,
        &llama,
        &"--past",
        &"8",
        &"--prefill",
        &"none",
        &"--rounds",
        &"2",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let count = |what: &str| ran.stdout.lines().filter(|l| l.contains(what)).count();
    assert_eq!(
        (
            count("optimum-llama"),
            count("decode step at 8 past tokens, batch of 1, 2 rounds"),
            count("prefill"),
        ),
        (2, 1, 0)
    );
    assert!(ran.stdout.contains("ONNX Runtime"), "{}", ran.stdout);
}

#[test]
fn what_cannot_be_measured_is_refused_with_a_way_out() {
    let (llama, uncached) = (fixture("optimum-llama"), fixture("dynamo18-llama-nocache"));
    let genai = fixture("genai-llama");
    let cases: &[(i32, &str, &[&dyn AsRef<Path>])] = &[
        (
            2,
            "--past or --prefill",
            &[&llama, &"--past", &"none", &"--prefill", &"none"],
        ),
        (2, "has no cache", &[&uncached, &"--past", &"8"]),
        (2, "is no length", &[&llama, &"--past", &"0"]),
        (2, "is no length", &[&llama, &"--prefill", &"8,many"]),
        (2, "--batch", &[&llama, &"--batch", &"0"]),
        (2, "--rounds", &[&llama, &"--rounds", &"0"]),
        // Longer than the model's table of positions.
        (
            1,
            "decode step at 4,096 past tokens",
            &[&genai, &"--past", &"4096"],
        ),
        (1, "too large", &[&llama, &"--past", &"99999999999"]),
        (
            1,
            "decode step at 4,096 past tokens",
            &[&genai, &genai, &"--past", &"4096"],
        ),
    ];
    for (code, words, arguments) in cases {
        let command: [&dyn AsRef<Path>; 1] = [&"bench"];
        let ran = with(&[&command, *arguments].concat());
        assert_eq!(ran.code, *code, "{words}: {ran:?}");
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
}
