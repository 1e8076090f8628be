//! What is not a model, not a text or not a number is refused with what to do instead.

use std::fs;
use std::path::Path;

use crate::common::{IDS, fixture, folder, rewrite_fixture, with};

#[test]
fn models_in_other_formats_are_told_how_to_be_exported() {
    let place = folder();
    let mut safetensors = 2_u64.to_le_bytes().to_vec();
    safetensors.extend(b"{}, and then the weights");
    let files: [(&str, &[u8], &str); 8] = [
        ("page.onnx", b"<!DOCTYPE html>\n<html>", "HTML"),
        ("index.onnx", b"{\"model\": 1}", "JSON"),
        ("notes.onnx", b"some words", "it is a text file"),
        ("model.gguf", b"GGUF\x03\0\0\0", "GGUF"),
        ("model.safetensors", &safetensors, "safetensors"),
        ("pytorch_model.bin", b"PK\x03\x04 archive", "PyTorch"),
        ("model.ort", b"\x18\0\0\0ORTM", "ONNX Runtime's own format"),
        (
            "model.onnx",
            b"version https://git-lfs.github.com/spec/v1\n",
            "git lfs pull",
        ),
    ];
    for (name, bytes, word) in files {
        let path = place.path().join(name);
        fs::write(&path, bytes).unwrap();
        let ran = with(&[&"inspect", &path]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(
            ran.stderr.contains(name) && ran.stderr.contains(word),
            "{ran:?}"
        );
        assert!(!ran.stderr.contains("truncated"), "{ran:?}");
    }
}

#[test]
fn a_folder_of_weights_and_the_name_of_a_hub_are_told_the_export_command() {
    let place = folder();
    fs::write(place.path().join("model.safetensors"), "weights").unwrap();
    fs::write(place.path().join("config.json"), "{}").unwrap();
    let elsewhere = folder();
    let out = elsewhere.path().join("out");
    let hub = Path::new("some-owner/Some-Model-1B");
    let runs = [
        with(&[&"inspect", &place.path()]),
        with(&[&"rewrite", &place.path(), &"-o", &out]),
        with(&[&"inspect", &hub]),
    ];
    for ran in runs {
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(
            ran.stderr.contains("optimum-cli export onnx --model"),
            "{ran:?}"
        );
    }
    assert!(!out.exists());
}

#[test]
fn every_command_finds_the_model_of_a_hub_folder() {
    let place = folder();
    let inside = place.path().join("onnx");
    fs::create_dir(&inside).unwrap();
    let model = fixture("optimum-llama").join("model.onnx");
    fs::copy(model, inside.join("model.onnx")).unwrap();
    let ran = with(&[&"inspect", &place.path()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    // Two layers that differ in nothing but their number are one line.
    assert!(ran.stdout.contains("0-1"), "{}", ran.stdout);
    assert!(ran.stdout.contains("and 1 more"), "{}", ran.stdout);
}

#[test]
fn options_that_cannot_be_meant_are_refused_with_what_can() {
    let place = folder();
    let (llama, out) = (fixture("optimum-llama"), place.path().join("out.onnx"));
    let words = place.path().join("words.txt");
    fs::write(&words, "some words of a text").unwrap();
    let latin = place.path().join("latin.txt");
    fs::write(&latin, b"na\xefve").unwrap();
    let rewrite: [&dyn AsRef<Path>; 4] = [&"rewrite", &llama, &"-o", &out];
    let cases: [(&[&dyn AsRef<Path>], &str); 5] = [
        (&[&"--max-perplexity-increase", &"5"], "write 5%"),
        (&[&"--max-kl", &"5%"], "nats"),
        (
            &[&"--prompt-ids", &"1,2,100000"],
            "token id 100000 is out of range",
        ),
        (&[&"--cache-ratio", &"500%"], "above 0 and at most 1"),
        (
            &[&"--cache-ratio", &"50%", &"--text", &words],
            "no tokenizer.json beside the model",
        ),
    ];
    for (options, words) in cases {
        let ran = with(&[&rewrite[..], options].concat());
        assert_eq!(ran.code, 2, "{words}: {ran:?}");
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
    }
    let ran = with(&[&"rewrite", &llama, &"-o", &"-"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("standard output"), "{ran:?}");
    assert!(!out.exists());
}

#[test]
fn half_the_cache_is_said_as_a_number_or_as_a_percentage() {
    let place = folder();
    let half = |ratio: &str| {
        let out = place
            .path()
            .join(format!("{}.onnx", ratio.trim_end_matches('%')));
        let llama = fixture("optimum-llama");
        let ran = with(&[
            &"rewrite",
            &llama,
            &"-o",
            &out,
            &"--cache-ratio",
            &ratio,
            &"--no-validate",
            &"--json",
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json()["rewrite"]["cache_bytes_per_token_after"].clone()
    };
    assert_eq!(half("50%"), half("0.5"));
    assert_eq!(half("0.5"), 256);
}

/// A model, options that are refused for it, and what the refusal offers: words of it, and the options when it is followed.
type Refused = (
    &'static str,
    &'static [&'static str],
    &'static [(&'static str, &'static [&'static str])],
);

const REFUSED: [Refused; 23] = [
    (
        "optimum-llama",
        &["--cache-bits", "6"],
        &[
            (
                "use the target gqa",
                &["--cache-bits", "6", "--target", "gqa"],
            ),
            ("or --cache-bits 8", &["--cache-bits", "8"]),
        ],
    ),
    (
        "dynamo18-dv",
        &["--cache-bits", "6"],
        &[(
            "use --cache-bits 8 with the target matmul",
            &["--cache-bits", "8", "--target", "matmul"],
        )],
    ),
    (
        "dynamo18-dv",
        &["--cache-bits", "6", "--target", "gqa"],
        &[(
            "use --cache-bits 8 with the target matmul",
            &["--cache-bits", "8", "--target", "matmul"],
        )],
    ),
    (
        "dynamo18-dv",
        &["--cache-bits", "8", "--keep-heads"],
        &[("leave out --keep-heads", &["--cache-bits", "8"])],
    ),
    (
        "dynamo18-dv",
        &["--cache-bits", "4", "--keep-heads"],
        &[(
            "leave out --keep-heads, and use --cache-bits 8",
            &["--cache-bits", "8"],
        )],
    ),
    (
        "dynamo18-dv",
        &["--keep-heads"],
        &[("leave out --keep-heads", &[])],
    ),
    (
        "optimum-llama",
        &["--cache-bits", "6", "--form", "expanded"],
        &[(
            "use --cache-bits 8",
            &["--cache-bits", "8", "--form", "expanded"],
        )],
    ),
    (
        "genai-llama",
        &["--cache-bits", "4", "--form", "joint"],
        &[(
            ": use --cache-bits 8\n",
            &["--cache-bits", "8", "--form", "joint"],
        )],
    ),
    (
        "optimum-llama",
        &["--cache-bits", "4", "--new-tokens", "exact"],
        &[("leave out --cache-bits", &["--new-tokens", "exact"])],
    ),
    (
        "genai-llama",
        &["--cache-bits", "6"],
        &[
            (
                "use the target gqa",
                &["--cache-bits", "6", "--target", "gqa"],
            ),
            ("or --cache-bits 8", &["--cache-bits", "8"]),
        ],
    ),
    (
        "optimum-qwen2",
        &["--cache-bits", "6", "--keep-heads"],
        &[
            ("use --cache-bits 8", &["--cache-bits", "8", "--keep-heads"]),
            ("8 or 4", &["--cache-bits", "4", "--keep-heads"]),
        ],
    ),
    (
        "genai-llama",
        &["--keep-heads"],
        &[("add --cache-bits 8", &["--keep-heads", "--cache-bits", "8"])],
    ),
    (
        "genai-llama",
        &["--cache-bits", "6", "--target", "gqa", "--form", "expanded"],
        &[(
            "leave out --form expanded",
            &["--cache-bits", "6", "--target", "gqa"],
        )],
    ),
    (
        "genai-llama",
        &["--target", "gqa", "--form", "expanded"],
        &[
            ("leave out --form expanded", &["--target", "gqa"]),
            (
                "use --target matmul",
                &["--target", "matmul", "--form", "expanded"],
            ),
        ],
    ),
    (
        "genai-llama",
        &[
            "--cache-bits",
            "4",
            "--target",
            "gqa",
            "--new-tokens",
            "exact",
        ],
        &[(
            "use --new-tokens prompt",
            &[
                "--cache-bits",
                "4",
                "--target",
                "gqa",
                "--new-tokens",
                "prompt",
            ],
        )],
    ),
    (
        "genai-llama",
        &["--target", "gqa", "--new-tokens", "exact"],
        &[
            (
                "use --new-tokens prompt",
                &["--target", "gqa", "--new-tokens", "prompt"],
            ),
            (
                "or --target matmul",
                &["--target", "matmul", "--new-tokens", "exact"],
            ),
        ],
    ),
    (
        "genai-llama",
        &["--cache-bits", "4", "--target", "gqa", "--rank", "20"],
        &[
            (
                "use --rank 16 or 24",
                &["--cache-bits", "4", "--target", "gqa", "--rank", "16"],
            ),
            (
                "or 24",
                &["--cache-bits", "4", "--target", "gqa", "--rank", "24"],
            ),
        ],
    ),
    (
        "genai-llama",
        &["--layout", "free", "--target", "gqa", "--cache-bits", "6"],
        &[(
            "leave out --layout free",
            &["--target", "gqa", "--cache-bits", "6"],
        )],
    ),
    (
        "genai-llama",
        &["--layout", "free", "--keep-heads", "--cache-bits", "8"],
        &[(
            "leave out --layout free",
            &["--keep-heads", "--cache-bits", "8"],
        )],
    ),
    (
        "optimum-llama",
        &["--layout", "free"],
        &[
            (
                "give it with --cache-ratio",
                &["--layout", "free", "--cache-ratio", "50%"],
            ),
            ("or --rank", &["--layout", "free", "--rank", "16"]),
        ],
    ),
    (
        "optimum-llama",
        &["--layout", "free", "--max-kl", "0.1"],
        &[
            ("leave out --layout free", &["--max-kl", "0.1"]),
            (
                "or --rank in place of",
                &["--layout", "free", "--rank", "16"],
            ),
        ],
    ),
    (
        "genai-llama",
        &[
            "--cache-io",
            "inplace",
            "--target",
            "gqa",
            "--cache-bits",
            "6",
        ],
        &[(
            "leave out --cache-io",
            &["--target", "gqa", "--cache-bits", "6"],
        )],
    ),
    (
        "optimum-llama",
        &["--cache-io", "inplace", "--new-tokens", "exact"],
        &[
            (
                "use --new-tokens prompt or latent",
                &["--cache-io", "inplace", "--new-tokens", "prompt"],
            ),
            (
                "or --cache-io append",
                &["--cache-io", "append", "--new-tokens", "exact"],
            ),
        ],
    ),
];

/// Whoever follows a refusal comes to a rewrite, and not to the next refusal.
#[test]
fn every_way_out_of_options_that_do_not_go_together_is_one() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let plan = |model: &str, options: &[&str]| {
        rewrite_fixture(model, &out, &[options, &IDS, &["--dry-run"]].concat())
    };
    for (model, options, ways) in REFUSED {
        let refused = plan(model, options);
        assert_eq!(refused.code, 2, "{model} {options:?}: {refused:?}");
        for (words, way) in ways {
            assert!(refused.stderr.contains(words), "{words}: {refused:?}");
            let followed = plan(model, way);
            assert_eq!(followed.code, 0, "{model} {way:?}: {followed:?}");
        }
        // Bits that were not chosen are not spoken of.
        let asked = options
            .windows(2)
            .find(|o| o[0] == "--cache-bits")
            .map(|o| o[1]);
        for bits in ["6", "4"].iter().filter(|bits| asked != Some(**bits)) {
            let other = format!("integers of {bits} bits");
            assert!(!refused.stderr.contains(&other), "{refused:?}");
        }
    }
}
