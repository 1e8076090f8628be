//! SmolLM2-135M, a trained model of 30 layers, as four public exporters wrote it.
//!
//! The graphs come from ../shared/models, which also tells where the weights are; the models are put together once, in
//! target/real-models or the folder that GQA2MLA_MODELS names (545 MB each).

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::common::{alone, python, real_model as model, session, shared, with};
use gqa2mla::files::load::load;
use gqa2mla::runtime::RuntimeKind;
use gqa2mla::validate::greedy;
use gqa2mla::validate::ports::LanguageModel;
use serde_json::json;
use tempfile::TempDir;

/// "The capital of France is", and how many tokens are written after it.
const PROMPT: [i64; 5] = [504, 3575, 282, 4649, 314];
const WRITTEN: usize = 32;
/// Numbers a token and layer, 2 * 3 heads * 64, times 30 layers of fp32.
const CACHE_BYTES: u64 = 2 * 3 * 64 * 30 * 4;
/// Resident memory that a rewrite may take: it grows with a layer, and the weights of this model are 545 MB.
const LARGEST_RESIDENT: u64 = 150 << 20;

/// A folder for outputs, on the disk that holds the model.
fn outputs(model: &Path) -> TempDir {
    tempfile::tempdir_in(model.parent().unwrap()).unwrap()
}

/// Runs the command as a child of Python's and prints the most memory that it had resident, in KiB.
const MEASURE: &str = "
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
";

/// Rewrites without running anything; gives the peak of resident memory in bytes.
fn rewrite(model: &Path, out: &Path) -> u64 {
    let command = Path::new(env!("CARGO_BIN_EXE_gqa2mla"));
    let arguments = [
        command,
        Path::new("rewrite"),
        model,
        Path::new("-o"),
        out,
        Path::new("--no-validate"),
    ];
    let kib: u64 = python(MEASURE, &arguments).trim().parse().unwrap();
    kib * 1024
}

fn same_bytes(one: &Path, other: &Path) -> bool {
    let open = |path: &Path| BufReader::with_capacity(1 << 20, File::open(path).unwrap());
    let (mut one, mut other) = (open(one), open(other));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = one.read(&mut a).unwrap();
        if count == 0 {
            return other.read(&mut b).unwrap() == 0;
        }
        if other.read_exact(&mut b[..count]).is_err() || a[..count] != b[..count] {
            return false;
        }
    }
}

fn continuation(path: &Path) -> Vec<i64> {
    let interface = LanguageModel::of(&load(path).unwrap().model.proto)
        .unwrap()
        .interface;
    let mut session = session(path, RuntimeKind::Ort).unwrap();
    greedy(session.as_mut(), &interface, &PROMPT, WRITTEN).unwrap()
}

/// The checker of onnx, which does not know one operator that the builder of onnxruntime-genai writes into ONNX's domain.
fn check(variant: &str, model: &Path) {
    if variant.starts_with("genai") {
        return;
    }
    python(
        "import onnx, sys; onnx.checker.check_model(sys.argv[1], full_check=True)",
        &[model],
    );
}

fn holds_what_is_claimed(variant: &str) {
    let _alone = alone();
    let folder = model(variant);
    let original = folder.join("model.onnx");

    let told = with(&[&"inspect", &original, &"--json"]).json();
    assert_eq!(
        json!([
            told["recognised"],
            told["not_recognised"],
            told["cache_bytes_per_token"]
        ]),
        json!([30, 0, CACHE_BYTES])
    );
    for (layer, site) in told["sites"].as_array().unwrap().iter().enumerate() {
        let facts = json!([
            site["layer"],
            site["heads"],
            site["kv_heads"],
            site["head_size"],
            site["value_size"]
        ]);
        assert_eq!(facts, json!([layer, 9, 3, 64, 64]));
    }

    let place = outputs(&folder);
    let out = place.path().join("exact.onnx");
    let resident = rewrite(&original, &out);
    assert!(
        resident <= LARGEST_RESIDENT,
        "{variant}: {} MiB resident",
        resident >> 20
    );
    check(variant, &out);

    // In ONNX Runtime; 1e-3 is what validation asks of fp32, and 30 layers round ten times as much as two.
    let told = with(&[
        &"validate",
        &original,
        &out,
        &"--tolerance",
        &"1e-3",
        &"--json",
    ])
    .json();
    assert_eq!(told["passed"], json!(true), "{variant}: {told:#}");
    let cache = |told: &serde_json::Value| {
        json!([
            told["proof"]["original_cache_bytes"],
            told["proof"]["rewritten_cache_bytes"]
        ])
    };
    assert_eq!(
        cache(&told),
        json!([CACHE_BYTES as f64, CACHE_BYTES as f64])
    );

    let text = continuation(&original);
    assert_eq!(text.len(), WRITTEN);
    assert_eq!(continuation(&out), text, "{variant}: another text");
    let decode = "import json, sys; from tokenizers import Tokenizer; \
                  print(Tokenizer.from_file(sys.argv[1]).decode(json.loads(sys.argv[2])))";
    let ids = serde_json::to_string(&text).unwrap();
    let words = python(decode, &[&folder.join("tokenizer.json"), Path::new(&ids)]);
    assert!(
        words.starts_with(" Paris."),
        "{variant}: the model says {words}"
    );

    // An output takes 545 MB: the exact one has said what it has to say.
    drop(place);
    let place = outputs(&folder);
    let half = place.path().join("half.onnx");
    let ran = with(&[
        &"rewrite", &original, &"-o", &half, &"--rank", &"96", &"--json",
    ]);
    let told = ran.json();
    assert_eq!(ran.code, 0, "{variant}: {ran:?}");
    let (whole, halved) = (CACHE_BYTES as f64, CACHE_BYTES as f64 / 2.0);
    assert_eq!(cache(&told["validation"]), json!([whole, halved]));
    let steps = told["validation"]["proof"]["steps"].as_array().unwrap();
    assert!(
        steps
            .iter()
            .all(|s| s["finite"] == json!(true) && s["positions"] != json!(0)),
        "{variant}: {steps:#?}"
    );
    check(variant, &half);
}

#[test]
#[ignore = "needs the trained models of ../shared"]
fn the_dynamo_export_holds_what_is_claimed() {
    holds_what_is_claimed("torch-dynamo-opset18");
}

#[test]
#[ignore = "needs the trained models of ../shared"]
fn the_optimum_export_holds_what_is_claimed() {
    holds_what_is_claimed("optimum-opset14");
}

#[test]
#[ignore = "needs the trained models of ../shared"]
fn the_export_with_attention_operators_holds_what_is_claimed() {
    holds_what_is_claimed("torch-dynamo-opset23");
}

#[test]
#[ignore = "needs the trained models of ../shared"]
fn the_genai_export_holds_what_is_claimed() {
    holds_what_is_claimed("genai-builder-fp32");
}

/// Options of a rewrite, the share of the cache that it leaves, and its largest increase of perplexity over the first 4,096
/// tokens of WikiText-2's test text, read through the cache. The factors are fitted to 8,192 tokens.
const SMALLER: [(&[&str], f64, f64); 3] = [
    (&["--cache-bits", "8"], 0.25, 0.005),
    (
        &["--cache-ratio", "0.75", "--reconstruct", "30"],
        0.75,
        0.11,
    ),
    (
        &[
            "--cache-ratio",
            "0.5",
            "--form",
            "expanded",
            "--reconstruct",
            "0",
        ],
        0.5,
        0.25,
    ),
];
/// Largest increase in the last eighth of the positions, relative to that of all: the loss must not grow with the position.
const LAST_EIGHTH: f64 = 1.5;

#[test]
#[ignore = "needs the trained models of ../shared"]
fn a_smaller_cache_costs_no_more_than_is_claimed() {
    let _alone = alone();
    let folder = model("torch-dynamo-opset18");
    let (original, tokenizer) = (folder.join("model.onnx"), folder.join("tokenizer.json"));
    let text = |name: &str| shared("models/wikitext2").join(name);
    let place = outputs(&folder);
    let (statistics, out) = (place.path().join("stats"), place.path().join("small.onnx"));
    let fitted: Vec<PathBuf> = vec![
        "--text".into(),
        text("valid.txt"),
        "--tokenizer".into(),
        tokenizer.clone(),
        "--calibration-tokens".into(),
        "8192".into(),
    ];
    let mut calibrate: Vec<PathBuf> = vec!["calibrate".into(), original.clone()];
    calibrate.extend(["-o".into(), statistics.clone()]);
    calibrate.extend(fitted.clone());
    let ran = crate::common::run(calibrate);
    assert_eq!(ran.code, 0, "{ran:?}");
    for (options, kept, limit) in SMALLER {
        let mut rewrite: Vec<PathBuf> = vec!["rewrite".into(), original.clone()];
        rewrite.extend(["-o".into(), out.clone(), "--no-validate".into()]);
        rewrite.extend(["--calibration".into(), statistics.clone()]);
        rewrite.extend(["--context".into(), "4096".into()]);
        rewrite.extend(options.iter().map(PathBuf::from));
        rewrite.extend(fitted.clone());
        let ran = crate::common::run(rewrite);
        assert_eq!(ran.code, 0, "{options:?}: {ran:?}");
        let told = with(&[
            &"validate",
            &original,
            &out,
            &"--text",
            &text("test.txt"),
            &"--tokenizer",
            &tokenizer,
            &"--test-tokens",
            &"4096",
            &"--length",
            &"4096",
            &"--json",
        ])
        .json();
        let quality = &told["quality"];
        let increase = told["perplexity_increase"].as_f64().unwrap();
        assert!(increase <= limit, "{options:?}: {increase}");
        let bytes = |key: &str| quality[key].as_f64().unwrap();
        let share = bytes("rewritten_cache_bytes") / bytes("original_cache_bytes");
        assert_eq!(share, kept, "{options:?}");
        let last = quality["positions"].as_array().unwrap().last().unwrap();
        let perplexity = |key: &str| last[key].as_f64().unwrap();
        let at_end = perplexity("rewritten_perplexity") / perplexity("original_perplexity") - 1.0;
        assert!(
            at_end <= LAST_EIGHTH * limit,
            "{options:?}: {at_end} at the end"
        );
        check("torch-dynamo-opset18", &out);
    }
}

#[test]
#[ignore = "needs the trained models of ../shared"]
fn threads_do_not_change_a_byte() {
    let _alone = alone();
    for variant in ["torch-dynamo-opset18", "optimum-opset14"] {
        let folder = model(variant);
        let place = outputs(&folder);
        for threads in ["1", "2"] {
            let mut command = crate::common::command();
            command
                .env("RAYON_NUM_THREADS", threads)
                .arg("rewrite")
                .arg(folder.join("model.onnx"));
            command
                .arg("--no-validate")
                .arg("-o")
                .arg(place.path().join(threads).join("model.onnx"));
            assert!(command.output().unwrap().status.success());
        }
        let mut files = 0;
        for entry in std::fs::read_dir(place.path().join("1")).unwrap() {
            let one = entry.unwrap().path();
            let two = place.path().join("2").join(one.file_name().unwrap());
            assert!(
                same_bytes(&one, &two),
                "{variant}: {} differs",
                one.display()
            );
            files += 1;
        }
        assert_eq!(files, 2, "{variant}: a model and its data file");
    }
}
