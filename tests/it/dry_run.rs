//! `rewrite --dry-run`: a plan tells what the rewrite does, and ends as the rewrite ends.

use std::fs;
use std::path::Path;

use crate::common::{IDS, fixtures, folder, rewrite_fixture};
use serde_json::Value;

#[test]
fn a_plan_is_what_the_rewrite_does() {
    let place = folder();
    let cases: [(&str, &[&str]); 7] = [
        (
            "genai-llama",
            &["--cache-bits", "6", "--target", "gqa", IDS[0], IDS[1]],
        ),
        ("optimum-llama", &[]),
        ("optimum-llama", &["--rank", "16"]),
        (
            "optimum-llama",
            &["--cache-ratio", "50%", "--form", "expanded"],
        ),
        ("optimum-llama", &["--cache-bits", "8", IDS[0], IDS[1]]),
        (
            "genai-llama",
            &["--cache-bits", "4", "--target", "gqa", IDS[0], IDS[1]],
        ),
        (
            "genai-llama",
            &["--cache-bits", "8", "--keep-heads", IDS[0], IDS[1]],
        ),
    ];
    for (model, options) in cases {
        let out = place.path().join("out");
        let plan = rewrite_fixture(model, &out, &[options, &["--dry-run", "--json"]].concat());
        assert_eq!(plan.code, 0, "{plan:?}");
        assert!(!out.exists(), "{model} {options:?}");
        let plan = plan.json();
        let told = rewrite_fixture(model, &out, &[options, &["--dry-run"]].concat()).stdout;
        assert!(
            told.ends_with("nothing was run or written (--dry-run)\n"),
            "{told}"
        );
        let done = rewrite_fixture(
            model,
            &out,
            &[options, &["--no-validate", "--json"]].concat(),
        );
        assert_eq!(done.code, 0, "{done:?}");
        let done = done.json();
        for key in [
            "rewritten",
            "not_rewritten",
            "target",
            "exact",
            "cache_bits",
            "rank_min",
            "rank_max",
            "cache_bytes_per_token_before",
            "cache_bytes_per_token_after",
        ] {
            assert_eq!(
                plan["models"][0][key], done["rewrite"][key],
                "{model} {options:?}: {key}"
            );
        }
        assert_eq!(plan["folder"]["serving"], done["folder"]["serving"]);
        // A configuration whose numbers stay is copied like any other file.
        let copied = |told: &Value| told["folder"]["copied"].as_u64().unwrap();
        let edits = done["folder"]["edits"].as_array().unwrap();
        let edited = u64::from(!edits.is_empty());
        assert_eq!(
            copied(&plan) + 1,
            copied(&done) + edited,
            "{model} {options:?}"
        );
        for file in plan["models"][0]["written"].as_array().unwrap() {
            let file = Path::new(file.as_str().unwrap());
            // Small weights stand in the model itself, and a data file is named after its content.
            assert!(file.exists(), "{file:?}");
        }
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_plan_is_refused_as_the_rewrite_is() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let foreign = place.path().join("foreign.onnx");
    fs::write(&foreign, "of another tool").unwrap();
    let text = [&IDS[..], &["--rank", "16"]].concat();
    let unknown = ["--input", "nope=1"];
    let with_text = [&text[..], &unknown].concat();
    let cases: [(i32, &str, &Path, &[&str]); 8] = [
        (1, "no-such-fixture", &out, &[]),
        (2, "optimum-llama", &out, &unknown),
        (2, "optimum-llama", &out, &with_text),
        (2, "optimum-llama", &foreign, &[]),
        (2, "optimum-llama", &out, &["--rank", "33"]),
        (2, "dynamo18-dv", &out, &["--target", "gqa"]),
        (2, "optimum-llama", &out, &["--cache-bits", "8"]),
        (3, "dynamo18-latent", &out, &[]),
    ];
    for (code, model, out, options) in cases {
        let real = rewrite_fixture(model, out, options);
        let plan = rewrite_fixture(model, out, &[options, &["--dry-run"]].concat());
        assert_eq!((real.code, plan.code), (code, code), "{model}: {plan:?}");
        assert_eq!(plan.stderr, real.stderr, "{model}");
    }
    // The parent of the output is a file.
    let below = foreign.join("out.onnx");
    for more in [&[][..], &["--dry-run"]] {
        let ran = rewrite_fixture("optimum-llama", &below, more);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(
            ran.stderr.contains(&foreign.display().to_string()),
            "{ran:?}"
        );
    }
    // Whether a stack serves the result shows in the interface that it would have.
    let out_folder = place.path().join("folder");
    for model in ["optimum-gptj", "optimum-whisper", "genai-gemma2-ring"] {
        let options = ["--allow-partial", "--no-validate"];
        let real = rewrite_fixture(model, &out_folder, &options);
        let plan = rewrite_fixture(model, &out_folder, &[&options[..], &["--dry-run"]].concat());
        assert_eq!((real.code, plan.code), (1, 1), "{model}: {plan:?}");
        assert!(
            real.stderr.ends_with(&plan.stderr),
            "{model}: {plan:?} {real:?}"
        );
        assert!(!out_folder.exists());
    }
    // So it is told before anything is computed.
    let bits = ["--cache-bits", "8", "--allow-partial", IDS[0], IDS[1]];
    let early = rewrite_fixture("optimum-gptj", &out_folder, &bits);
    assert_eq!(early.code, 1, "{early:?}");
    assert!(!early.stderr.contains("reading text"), "{early:?}");
    // What a search finds is not known before it has searched.
    let searched = ["--max-kl", "0.1", IDS[0], IDS[1], "--dry-run", "--json"];
    let plan = rewrite_fixture("optimum-llama", &out, &searched).json();
    assert_eq!(plan["models"][0]["searches"]["promise"], "KL");
    assert!(plan["models"][0]["exact"].is_null());
    assert!(!out.exists());
}

/// Of every fixture, in the forms that differ in what they ask of a graph and of a stack.
#[test]
fn a_plan_of_any_fixture_ends_as_its_rewrite_does() {
    let place = folder();
    let forms: [&[&str]; 5] = [
        &[],
        &["--target", "gqa"],
        &["--form", "expanded"],
        &["--cache-io", "inplace", "--serving", "none"],
        &["--rank", "8"],
    ];
    for model in fixtures() {
        for form in forms {
            let options = [form, &["--no-validate", "--allow-partial", "-q"]].concat();
            let out = place.path().join("out");
            let real = rewrite_fixture(&model, &out, &options);
            let _ = fs::remove_dir_all(&out);
            let plan = rewrite_fixture(&model, &out, &[&options[..], &["--dry-run"]].concat());
            assert_eq!(
                (plan.code, &plan.stderr),
                (real.code, &real.stderr),
                "{model} {form:?}"
            );
            assert!(!out.exists());
        }
    }
}
