//! `--cache-io inplace`: past inputs have room for the new rows, and no step copies a cache.

#[path = "in_place/refused.rs"]
mod refused;

use std::path::{Path, PathBuf};

use gqa2mla_passes::forms::{AbsorbedPrompt, GROUPED_PROMPT, Join};
use gqa2mla_passes::{Expanded, Form, RankPlan, RewriteOptions, inspect};
use serde_json::Value;

use crate::common::{
    HALF, IN_BF16, SINGLE, compared, fixture, folder, in_ort, loaded, proved, recognised_fixtures,
    rewritten, root, with,
};

/// Fixtures whose caches cannot be written in place, with the reason.
const REFUSED: [(&str, &str); 8] = [
    (
        "beams-llama",
        "copies it between the attention and the model's interface",
    ),
    (
        "dynamo18-llama-nocache",
        "no past behind which it could be written",
    ),
    ("identity-llama", "Identity"),
    ("int8-llama", "branch of If"),
    ("keep_io-llama", "Cast"),
    ("merged-llama", "branch of If"),
    ("optimum-gptj", "Cast"),
    ("optimum-whisper", "branch of If"),
];

fn options(form: &dyn Form) -> RewriteOptions<'_> {
    RewriteOptions {
        form,
        join: Join::InPlace,
        ..RewriteOptions::default()
    }
}

/// Where a model is fed room for its new rows, that room holds NaN: whoever reads it before it is written shows it.
#[test]
fn at_full_rank_nothing_is_lost_in_every_dialect_that_is_not_refused() {
    for name in recognised_fixtures() {
        let before = loaded(&name);
        let mut after = loaded(&name);
        let done = rewritten(&mut after, options(&gqa2mla_passes::Absorbed));
        let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
        match (done, refused) {
            (Ok(_), None) => {}
            (Err(error), Some((_, words))) => {
                let told = error.to_string();
                assert!(told.contains(words), "{name}: {told}");
                assert!(told.contains("--cache-io append"), "{name}: {told}");
                continue;
            }
            (done, _) => panic!("{name}: {:?}", done.map(|d| d.explain())),
        }
        if name == IN_BF16 {
            continue;
        }
        let tolerance = match name.contains("fp16") {
            true => HALF,
            false => SINGLE,
        };
        let found = proved(&name, (&before, &after), tolerance);
        assert!(
            found.steps.iter().any(|s| s.past > 0 && s.tokens > 1),
            "{name}: {found:#?}"
        );
        assert!(found.rewritten_cache_bytes <= found.original_cache_bytes);
    }
}

/// Keys are rebuilt and rotated at the positions of all cached rows.
#[test]
fn the_expanded_form_writes_in_place_as_well() {
    for name in [
        "optimum-llama",
        "dynamo18-glm",
        "dynamo23-llama",
        "genai-phi3",
        "optimum-gemma2",
    ] {
        let before = loaded(name);
        let mut after = loaded(name);
        rewritten(&mut after, options(&Expanded)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let found =
            compared(&before, &after, in_ort(SINGLE)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(found.passed(), "{name}: {:e}", found.max_ratio());
    }
}

/// A past that holds nothing but room for the new rows is that of a prompt.
#[test]
fn a_prompt_is_exact_and_later_steps_read_latents() {
    for name in [
        "optimum-llama",
        "dynamo18-dv",
        "dynamo23-llama",
        "genai-gemma2",
    ] {
        let full = inspect(&loaded(name).model).unwrap().sites.remove(0);
        let full = full.key.rank.max(full.value.rank);
        for ranks in [RankPlan::Full, RankPlan::Uniform(full / 2)] {
            let exact = ranks == RankPlan::Full;
            let before = loaded(name);
            let mut after = loaded(name);
            let options = RewriteOptions {
                ranks,
                ..options(&AbsorbedPrompt)
            };
            rewritten(&mut after, options).unwrap_or_else(|e| panic!("{name}: {e}"));
            let found =
                compared(&before, &after, in_ort(SINGLE)).unwrap_or_else(|e| panic!("{name}: {e}"));
            for step in &found.steps {
                let same = exact || step.past == 0;
                assert_eq!(same, step.ratio <= SINGLE, "{name}: {step:?}");
            }
            assert!(found.steps.iter().any(|s| s.past > 0), "{name}");
        }
    }
}

/// Some exporters declare the mask of all tokens with the length of the new ones; no number of rows is read from it.
#[test]
fn a_mask_is_not_taken_for_the_new_tokens() {
    let declared = || {
        let mut loaded = loaded("genai-llama");
        let inputs = &mut loaded.model.proto.graph.as_mut().unwrap().input;
        inputs.sort_by_key(|input| input.name() != "attention_mask");
        let ids = inputs.iter().find(|i| i.name() == "input_ids").unwrap();
        inputs[0].r#type = ids.r#type.clone();
        loaded
    };
    let grouped = RewriteOptions {
        form: &GROUPED_PROMPT,
        ..RewriteOptions::default()
    };
    for options in [options(&gqa2mla_passes::Absorbed), grouped] {
        let (before, mut after) = (declared(), declared());
        rewritten(&mut after, options).unwrap();
        let graph = after.model.proto.graph.as_ref().unwrap();
        let sizes = graph
            .node
            .iter()
            .filter(|n| n.name().starts_with("mla/tokens"));
        let read: Vec<&str> = sizes.map(|n| &*n.input[0]).collect();
        assert!(read.contains(&"input_ids"), "{read:?}");
        assert!(!read.contains(&"attention_mask"), "{read:?}");
        let found = compared(&before, &after, in_ort(SINGLE)).unwrap();
        assert!(found.passed(), "{:e}", found.max_ratio());
    }
}

/// Rewrites the fixture `name` with the command, appending and in place; the paths of both.
fn both(name: &str, place: &Path, more: &[&str]) -> [PathBuf; 2] {
    ["append", "inplace"].map(|io| {
        let out = place.join(format!("{io}.onnx"));
        let model = fixture(name).join("model.onnx");
        let mut arguments: Vec<&dyn AsRef<Path>> = vec![
            &"rewrite",
            &model,
            &"-o",
            &out,
            &"--cache-io",
            &io,
            &"--json",
        ];
        arguments.extend(more.iter().map(|word| word as &dyn AsRef<Path>));
        let ran = with(&arguments);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let report = ran.json();
        assert_eq!(report["rewrite"]["cache_io"], io, "{name}");
        out
    })
}

/// What a script of the test environment prints, as JSON.
fn script(path: &str, arguments: &[&Path]) -> Value {
    let program = root().join(".venv/bin/python");
    let mut command = std::process::Command::new(program);
    let ran = command.arg(root().join(path)).args(arguments).output();
    let ran = crate::common::Ran::from(ran.unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.json()
}

const SCALES: [&str; 10] = [
    "--cache-bits",
    "8",
    "--length",
    "64",
    "--context",
    "64",
    "--force",
    "--reconstruct",
    "0",
    "--token-ids",
];

/// Steps of one and of several tokens on views of one buffer that grow. With the same nodes around it the join changes no
/// bit of the logits; the rows that are not new stay as they were.
#[test]
fn past_and_present_in_one_buffer_give_what_appending_gives() {
    let ids = root().join("fixtures/tokens.json");
    let ids = ids.to_str().unwrap();
    let rounded: Vec<&str> = SCALES.iter().copied().chain([ids]).collect();
    let prompt = ["--new-tokens", "prompt"];
    let rounded_prompt = [&rounded[..], &prompt].concat();
    let per_head = [&["--per-head"][..], &prompt].concat();
    // Random tokens reach beyond the range of the text, as rounded.rs says. Gemma 3n has layers that read the cache of another.
    let cases: [(&str, &[&str], f64); 10] = [
        ("optimum-llama", &prompt, SINGLE),
        ("optimum-qwen2", &per_head, SINGLE),
        ("dynamo18-gemma3n", &prompt, SINGLE),
        ("optimum-llama", &rounded_prompt, 7e-2),
        ("optimum-llama", &[], SINGLE),
        ("dynamo18-llama", &[], SINGLE),
        ("dynamo23-llama-gqa", &[], SINGLE),
        ("dynamo18-llama-fp16", &[], HALF),
        ("optimum-llama", &rounded, 7e-2),
        ("dynamo18-llama-fp16", &rounded, 7e-2),
    ];
    for (name, more, tolerance) in cases {
        let place = folder();
        let [append, in_place] = both(name, place.path(), more);
        let original = fixture(name).join("model.onnx");
        let told = script(
            "tests/python/one_buffer.py",
            &[&original, &append, &in_place],
        );
        assert_eq!(told["append"], 0.0, "{name} {more:?}: {told}");
        assert_eq!(told["rest"], true, "{name} {more:?}: {told}");
        let apart = told["original"].as_f64().unwrap();
        assert!(apart <= tolerance, "{name} {more:?}: {told}");
    }
}

#[test]
fn the_example_generates_what_the_original_generates() {
    let place = folder();
    // The last two leave the head size open, and the last has states of convolutions beside its caches.
    for name in [
        "optimum-llama",
        "dynamo18-llama",
        "dynamo23-llama-gqa",
        "genai-llama",
        "genai-lfm2",
    ] {
        let [_, in_place] = both(name, place.path(), &[]);
        let asked: [&Path; 4] = ["--ids", "5,17,42,99,3", "--tokens", "12"].map(Path::new);
        let model = fixture(name).join("model.onnx");
        let own = [&[in_place.as_path()], asked.as_slice()].concat();
        let own = script("examples/generate_in_place.py", &own);
        let size: [&Path; 2] = ["--head-size", "16"].map(Path::new);
        let before = [&[model.as_path()], asked.as_slice(), size.as_slice()].concat();
        let before = script("examples/generate.py", &before);
        assert_eq!(own, before[0], "{name}");
        assert_eq!(own.as_array().unwrap().len(), 12);
    }
}

/// The model itself says how it is fed: nothing has to be told to the commands that run it.
#[test]
fn a_written_model_is_validated_measured_and_timed() {
    let place = folder();
    let original = fixture("optimum-llama").join("model.onnx");
    let [append, in_place] = both("optimum-llama", place.path(), &[]);
    let ids = root().join("fixtures/tokens.json");
    let ran = with(&[
        &"validate",
        &original,
        &in_place,
        &"--json",
        &"--token-ids",
        &ids,
        &"--length",
        &"64",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let report = ran.json();
    let kl = report.pointer("/quality/mean_kl").and_then(Value::as_f64);
    assert!(kl.is_some_and(|kl| kl.abs() < 1e-9), "{report}");
    for (how, expected) in [
        ("shared", "shared"),
        ("bound", "bound"),
        ("copied", "copied"),
    ] {
        let ran = with(&[
            &"bench",
            &append,
            &in_place,
            &"--json",
            &"--rounds",
            &"2",
            &"--past",
            &"8",
            &"--prefill",
            &"4",
            &"--batch",
            &"1,2",
            &"--io",
            &how,
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let models = &ran.json()["models"];
        assert_eq!(models[1]["io"], expected);
        assert_eq!(
            models[0]["cache_bytes_per_token"],
            models[1]["cache_bytes_per_token"]
        );
    }
}

#[test]
fn a_smaller_rank_is_written_in_place_and_halves_the_cache() {
    let mut after = loaded("dynamo18-llama");
    let asked = RewriteOptions {
        ranks: RankPlan::Ratio(0.5),
        ..options(&gqa2mla_passes::Absorbed)
    };
    rewritten(&mut after, asked).unwrap();
    let found = compared(&loaded("dynamo18-llama"), &after, in_ort(SINGLE)).unwrap();
    assert_eq!(
        2.0 * found.rewritten_cache_bytes,
        found.original_cache_bytes
    );
    assert!(found.steps.iter().all(|s| s.finite) && !found.passed());
}
