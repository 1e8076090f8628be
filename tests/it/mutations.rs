//! Breaks exports in hundreds of ways. Each broken model is refused, or its rewrite still computes the same numbers, or it
//! does not run even before: a silent wrong answer is what must never happen.

#[path = "mutations/deliberate.rs"]
mod deliberate;
#[path = "mutations/new_rows.rs"]
mod new_rows;
#[path = "mutations/not_finite.rs"]
mod not_finite;
#[path = "mutations/unstable.rs"]
mod unstable;

use std::collections::BTreeMap;
use std::path::Path;

use deliberate::{mutations, places};
use gqa2mla::files::load::{LoadedModel, load};
use gqa2mla::files::save::save;
use gqa2mla::runtime::{RuntimeKind, RuntimeOptions, Session, open, report_aborts};
use gqa2mla::validate::ports::LanguageModel;
use gqa2mla::validate::{ValidateOptions, validate};
use gqa2mla_passes::onnx::{GraphProto, tensor_proto::DataType};
use gqa2mla_passes::{RewriteOptions, by_weights, rewrite};
use not_finite::Watched;

/// Largest logit difference of an exact rewrite in fp32, relative to the largest logit: rounding is 1e-6, and every
/// mutation that means something moves logits by more than 1e-3.
const TOLERANCE: f64 = 2e-5;

/// The same where activations are rounded to half precision or to 8 bits on the way, and in Gemma 4 by mobius, whose scores are
/// not scaled: two spelled-out forms of a mutant agreed to 1.2e-6, and differed from the operator's own softmax by 2.1e-5.
const ROUNDED: [(&str, f64); 3] = [
    ("dynamo18-llama-fp16", 2e-2),
    ("genai-llama-int4", 2e-2),
    ("mobius-gemma4", 1e-4),
];
/// ONNX Runtime's CPU does not run it.
const IN_BF16: &str = "dynamo18-llama-bf16";

/// One export of each kind, which is changed more often than the others.
const MANY: [&str; 4] = [
    "dynamo18-llama",
    "optimum-llama",
    "dynamo23-llama-gqa",
    "genai-llama",
];

/// Every fixture that runs.
fn bases() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("model.onnx").is_file())
        .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
        .filter(|name| name != IN_BF16)
        .collect();
    names.sort();
    names
}

fn tolerance(name: &str) -> f64 {
    let rounded = ROUNDED.iter().find(|(n, _)| *n == name);
    rounded.map_or(TOLERANCE, |(_, tolerance)| *tolerance)
}

/// What became of a mutated model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Refused,
    Exact,
    /// ONNX Runtime does not run the mutated original either.
    Broken,
    /// A rounding of the mutated original's weights throws its logits as far off as the rewrite does.
    Unstable,
    /// The mutated original caches a number that is not finite.
    NotFinite,
}

fn base(name: &str) -> LoadedModel {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name);
    load(&path).unwrap()
}

fn session(path: &Path) -> Result<Box<dyn Session>, String> {
    let options = RuntimeOptions {
        runtime: RuntimeKind::Ort,
        threads: 1,
        ..RuntimeOptions::default()
    };
    open(path, &options).map_err(|e| e.to_string())
}

/// Rewrites `model` and compares both in ONNX Runtime.
fn fate(model: LoadedModel, what: &str, tolerance: f64) -> Fate {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original.onnx");
    // Where ONNX Runtime ends the process, the folder stays.
    std::fs::write(folder.path().join("change.txt"), what).unwrap();
    save(&model, &original).unwrap();
    let before = LanguageModel::of(&model.model.proto).unwrap();
    let mut changed = load(&original).unwrap();
    let done = rewrite(
        &mut changed.model,
        &RewriteOptions::default(),
        &mut by_weights,
        &mut |tensor| Ok(tensor),
        &mut |_, _| {},
    );
    if let Err(error) = done {
        // A rewrite that contradicts itself is a fault of the rewrite, whatever the model.
        assert!(
            !error.to_string().contains("internal error"),
            "{what}: {error}"
        );
        return Fate::Refused;
    }
    let Ok(mut first) = Watched::open(&original, &before.interface) else {
        return Fate::Broken;
    };
    let rewritten = folder.path().join("rewritten.onnx");
    save(&changed, &rewritten).unwrap();
    let after = LanguageModel::of(&changed.model.proto).unwrap();
    let mut second =
        session(&rewritten).unwrap_or_else(|e| panic!("{what}: the rewrite does not load: {e}"));
    let options = ValidateOptions {
        vocabulary: before.vocabulary,
        tokens: None,
        seed: 1,
        right_padded_only: before.right_padded_only,
        tolerance: Some(tolerance),
    };
    let compared = validate(
        &mut first,
        second.as_mut(),
        &before.interface,
        &after.interface,
        &options,
        &mut |_, _| {},
    );
    match compared {
        // Where the mutated original has no number there is nothing to keep.
        Ok(comparison) if comparison.steps.iter().all(|s| s.positions == 0) => Fate::Broken,
        Ok(comparison) => {
            let mut numbers = comparison.steps.iter().filter(|s| s.positions > 0);
            let passed = numbers.all(|s| s.passed(tolerance));
            if !passed && first.saw_any {
                return Fate::NotFinite;
            }
            if !passed && unstable::explains(&model, folder.path(), comparison.max_ratio()) {
                return Fate::Unstable;
            }
            assert!(
                passed,
                "{what}: rewritten without a word, and the logits differ by {:e} of the largest",
                comparison.max_ratio()
            );
            Fate::Exact
        }
        Err(error) => {
            let text = error.to_string();
            // Lengths of rows that do not fit are refused when the model runs, by this check in the graph.
            if text.contains("every_row_must_hold_past_plus_new_tokens") {
                return Fate::Refused;
            }
            // Logits of no meaning in both models come of the change, not of the rewrite.
            let of_both = ["original model failed", "both models give logits"];
            assert!(
                of_both.iter().any(|words| text.contains(words)),
                "{what}: only the rewrite fails: {text}"
            );
            Fate::Broken
        }
    }
}

fn graph(model: &mut LoadedModel) -> &mut GraphProto {
    model.model.proto.graph.as_mut().unwrap()
}

#[test]
fn every_deliberate_change_has_its_fate() {
    for (what, change, expected) in mutations() {
        let mut model = base("dynamo18-llama");
        let graph = graph(&mut model);
        // The exporter's shapes would be stale.
        graph.value_info.clear();
        let places = places(graph);
        change(graph, &places);
        assert_eq!(fate(model, what, TOLERANCE), expected, "{what}");
    }
}

/// A small reproducible generator (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

/// Changes one thing about one random node.
fn random_change(graph: &mut GraphProto, random: &mut Random) -> String {
    graph.value_info.clear();
    let at = random.below(graph.node.len());
    let before = gqa2mla_passes::graph::text::node(&graph.node[at]);
    let kind = random.below(6);
    let node = &mut graph.node[at];
    match kind {
        0 => {
            if let Some(perm) = node.attribute.iter_mut().find(|a| a.ints.len() > 1) {
                let (i, j) = (random.below(perm.ints.len()), random.below(perm.ints.len()));
                perm.ints.swap(i, j);
            }
        }
        1 => {
            if let Some(number) = node
                .attribute
                .iter_mut()
                .find(|a| a.i.is_some() && a.name() != "to")
            {
                number.i = Some(number.i() + random.below(3) as i64 - 1);
            }
        }
        2 => {
            if node.input.len() > 1 {
                let (i, j) = (
                    random.below(node.input.len()),
                    random.below(node.input.len()),
                );
                node.input.swap(i, j);
            }
        }
        3 => {
            let swapped = match node.op_type() {
                "Mul" => "Add",
                "Add" => "Sub",
                "Sub" => "Add",
                "Div" => "Mul",
                "Unsqueeze" => "Squeeze",
                "Identity" => "Neg",
                "Expand" => "Tile",
                "Cos" => "Sin",
                other => other,
            };
            node.op_type = Some(swapped.to_owned());
        }
        4 => {
            let constants: Vec<usize> = (0..graph.initializer.len())
                .filter(|&i| graph.initializer[i].data_type() == DataType::Int64 as i32)
                .collect();
            let which = random.below(constants.len());
            if let Some(raw) = constants
                .get(which)
                .and_then(|&i| graph.initializer[i].raw_data.as_mut())
                && raw.len() >= 8
            {
                let mut bytes = raw.to_vec();
                bytes[0] = bytes[0].wrapping_add(random.below(5) as u8).wrapping_sub(2);
                *raw = bytes.into();
            }
        }
        _ => {
            // Another value of the graph in place of an input.
            let other = random.below(at.max(1));
            let value = graph.node[other].output[0].clone();
            let node = &mut graph.node[at];
            if !node.input.is_empty() {
                let i = random.below(node.input.len());
                node.input[i] = value;
            }
        }
    }
    format!(
        "{before}  became  {}",
        gqa2mla_passes::graph::text::node(&graph.node[at])
    )
}

#[test]
#[ignore = "takes a minute"]
fn random_changes_of_four_exports_never_give_a_silent_wrong_answer() {
    random_changes(&MANY.map(str::to_owned), 120);
}

#[test]
#[ignore = "takes a minute"]
fn random_changes_of_any_other_export_never_give_a_silent_wrong_answer() {
    let others: Vec<String> = bases()
        .into_iter()
        .filter(|name| !MANY.contains(&name.as_str()))
        .collect();
    random_changes(&others, 20);
}

/// One to three changes of any export for each seed: a hundred, or as many as are asked for. docs/fuzzing.md
#[test]
#[ignore = "takes a minute, or as long as it is asked to"]
fn several_random_changes_never_give_a_silent_wrong_answer() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    report_aborts().unwrap();
    let first: u64 = number("GQA2MLA_FUZZ_SEED").unwrap_or(0);
    let count: u64 = number("GQA2MLA_FUZZ_PAIRS").unwrap_or(100);
    let names = bases();
    let mut fates: BTreeMap<Fate, usize> = BTreeMap::new();
    for seed in first..first + count {
        let mut random = Random(seed);
        let name = &names[random.below(names.len())];
        let mut model = base(name);
        let changes = 1 + random.below(3);
        let what = (0..changes).map(|_| random_change(graph(&mut model), &mut random));
        let what = format!(
            "{name}, seed {seed}: {}",
            what.collect::<Vec<_>>().join("; ")
        );
        *fates
            .entry(fate(model, &what, tolerance(name)))
            .or_default() += 1;
    }
    eprintln!("{count} from seed {first}: {fates:?}");
    assert!(fates.contains_key(&Fate::Refused) && fates.contains_key(&Fate::Exact));
}

/// Changes each of `names` once for each seed below `count`.
fn random_changes(names: &[String], count: u64) {
    let mut fates: BTreeMap<Fate, usize> = BTreeMap::new();
    for name in names {
        for seed in 0..count {
            let mut random = Random(seed * 7919 + name.len() as u64);
            let mut model = base(name);
            let what = random_change(graph(&mut model), &mut random);
            *fates
                .entry(fate(
                    model,
                    &format!("{name}, seed {seed}: {what}"),
                    tolerance(name),
                ))
                .or_default() += 1;
        }
    }
    eprintln!("{fates:?}");
    // The test would show nothing if every change were harmless, or every one broke the model.
    assert!(
        fates.get(&Fate::Refused).is_some_and(|&n| n >= 20),
        "{fates:?}"
    );
    assert!(
        fates.get(&Fate::Exact).is_some_and(|&n| n >= 20),
        "{fates:?}"
    );
}
