//! Static caches: `TensorScatter` writes the new rows into a buffer of constant length, where an input says.

use std::path::Path;

use gqa2mla::files::load::LoadedModel;
use gqa2mla::validate::ports::LanguageModel;
use gqa2mla_passes::forms::Join;
use gqa2mla_passes::forms::join::in_place;
use gqa2mla_passes::graph::build::{node, value};
use gqa2mla_passes::onnx::{GraphProto, NodeProto, tensor_proto::DataType};
use gqa2mla_passes::{RankPlan, RewriteOptions, inspect};
use serde_json::{Value, json};

use crate::common::{SINGLE, fixture, folder, loaded, proved, python, rewritten, root, with};

/// The heads on one axis, as an exporter writes them; four axes, once for the operator and once for products.
pub const STATIC: [&str; 3] = ["mobius-llama", "mobius-qwen3", "static-llama"];

const LOOP: &str = include_str!("../python/static_cache.py");

fn graph(model: &mut LoadedModel) -> &mut GraphProto {
    model.model.proto.graph.as_mut().unwrap()
}
/// Writes `present` into the negated rows of `past`.
fn into_negated(graph: &mut GraphProto, past: &str, present: &str) {
    let negated = node("Neg", "other", &[past], &["negated"]);
    graph.node.insert(0, negated);
    write(graph, present).input[0] = "negated".to_owned();
}

fn write<'g>(graph: &'g mut GraphProto, present: &str) -> &'g mut NodeProto {
    let mut nodes = graph.node.iter_mut();
    nodes.find(|n| n.output == [present]).unwrap()
}

/// A loop in which the rows of a batch differ in length, and buffers hold other numbers before they are written.
#[test]
fn buffers_that_are_used_again_give_what_the_original_gives() {
    for name in STATIC {
        let place = folder();
        let out = place.path().join("out.onnx");
        let model = fixture(name).join("model.onnx");
        let ran = with(&[&"rewrite", &model, &"-o", &out]);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let told = python(LOOP, &[&model, &out]);
        let told: Value = serde_json::from_str(&told).unwrap();
        assert!(told["apart"].as_f64().unwrap() <= SINGLE, "{name}: {told}");
        assert_eq!(told["in_place"], true, "{name}: {told}");
    }
}

/// The buffer keeps its number of rows and its axes; of a row, half is left.
#[test]
fn half_of_the_rank_is_half_of_the_buffer() {
    for (name, ratio) in [("mobius-llama", 0.5), ("static-llama", 0.5)] {
        let mut after = loaded(name);
        let options = RewriteOptions {
            ranks: RankPlan::Ratio(ratio),
            ..RewriteOptions::default()
        };
        rewritten(&mut after, options).unwrap();
        let shapes = |model: &LoadedModel| {
            let interface = LanguageModel::of(&model.model.proto).unwrap().interface;
            let dims = interface.caches.iter().map(|cache| cache.dims.clone());
            dims.collect::<Vec<_>>()
        };
        let (before, after) = (shapes(&loaded(name)), shapes(&after));
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before.len(), after.len(), "{name}");
            let rows = before.len() - 2;
            assert_eq!(before[rows], after[rows], "{name}");
            let last = format!("{:?}", after.last().unwrap());
            assert_eq!(last, "Fixed(16)", "{name}");
        }
    }
}

/// The text is read in runs of at most as many tokens as the buffer has rows.
#[test]
fn a_text_is_read_through_the_buffer() {
    for (name, more) in [
        ("mobius-llama", &["--cache-ratio", "0.5"][..]),
        ("static-llama", &["--cache-bits", "8"]),
    ] {
        let place = folder();
        let out = place.path().join("out.onnx");
        let model = fixture(name).join("model.onnx");
        let ids = root().join("fixtures/tokens.json");
        let mut arguments: Vec<&dyn AsRef<Path>> = vec![
            &"rewrite",
            &model,
            &"-o",
            &out,
            &"--json",
            &"--force",
            &"--reconstruct",
            &"0",
            &"--token-ids",
            &ids,
        ];
        arguments.extend(more.iter().map(|word| word as &dyn AsRef<Path>));
        let ran = with(&arguments);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let told = ran.json();
        let kl = told.pointer("/quality/mean_kl").and_then(Value::as_f64);
        assert!(kl.is_some_and(|kl| kl < 0.5), "{name}: {told}");
    }
    // More positions than the buffer has rows are an error of the request.
    let model = fixture("mobius-llama").join("model.onnx");
    let place = folder();
    let out = place.path().join("out.onnx");
    let ids = root().join("fixtures/tokens.json");
    let ran = with(&[
        &"rewrite",
        &model,
        &"-o",
        &out,
        &"--rank",
        &"16",
        &"--token-ids",
        &ids,
        &"--context",
        &"128",
    ]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("ask for at most 64"), "{ran:?}");
}

/// The graph's own write is kept, and the model does not say that there is space behind the past.
#[test]
fn writing_in_place_is_what_the_graph_does_already() {
    for name in STATIC {
        let before = loaded(name);
        let mut after = loaded(name);
        let options = RewriteOptions {
            join: Join::InPlace,
            ..RewriteOptions::default()
        };
        rewritten(&mut after, options).unwrap();
        assert_eq!(in_place(&after.model.proto).count(), 0, "{name}");
        proved(name, (&before, &after), SINGLE);
    }
}

#[test]
fn forms_that_need_more_of_the_past_are_refused_with_the_way_out() {
    let model = fixture("mobius-llama").join("model.onnx");
    let place = folder();
    let out = place.path().join("out.onnx");
    let cases: [&[&str]; 4] = [
        &["--form", "expanded"],
        &["--new-tokens", "exact"],
        &["--new-tokens", "prompt"],
        &["--target", "gqa"],
    ];
    for more in cases {
        let mut arguments: Vec<&dyn AsRef<Path>> = vec![&"rewrite", &model, &"-o", &out];
        arguments.extend(more.iter().map(|word| word as &dyn AsRef<Path>));
        let ran = with(&arguments);
        assert_ne!(ran.code, 0, "{more:?}: {ran:?}");
        assert!(ran.stderr.contains("use "), "{more:?}: {ran:?}");
        assert!(!out.exists());
    }
}

/// A buffer that wraps around writes whole rows too.
#[test]
fn a_circular_write_is_kept() {
    let circular = |name: &str| {
        let mut model = loaded(name);
        for present in ["present.0.key", "present.0.value"] {
            let write = write(graph(&mut model), present);
            *write = write.clone().with_text("mode", "circular");
        }
        model
    };
    let (before, mut after) = (circular("static-llama"), circular("static-llama"));
    rewritten(&mut after, RewriteOptions::default()).unwrap();
    proved("static-llama", (&before, &after), SINGLE);
    let write = write(graph(&mut after), "present.0.key");
    assert!(write.attribute.iter().any(|a| a.s() == b"circular"));
}

/// A change of a graph, and the reason that its first layer gets.
type NearMiss = (
    &'static str,
    fn(&mut GraphProto),
    &'static str,
    &'static str,
);

const NEAR_MISSES: [NearMiss; 6] = [
    (
        "static-llama",
        |g| {
            let write = write(g, "present.0.key");
            *write = write.clone().with_int("axis", 1);
        },
        "cache-axis",
        "grows on axis 1",
    ),
    (
        "static-llama",
        |g| {
            let other = node(
                "TensorScatter",
                "again",
                &["present.0.value", "present.0.value"],
                &["twice"],
            );
            g.node.push(other);
            g.output
                .push(value("twice", DataType::Float.into(), &[2, 2, 8, 16]));
        },
        "second-reader",
        "TensorScatter 'again'",
    ),
    (
        "static-llama",
        |g| {
            let past = "past_key_values.0.key";
            let other = node("TensorScatter", "again", &[past, past], &["twice"]);
            g.node.push(other);
            g.output
                .push(value("twice", DataType::Float.into(), &[2, 2, 8, 16]));
        },
        "second-reader",
        "TensorScatter 'again'",
    ),
    (
        "static-llama",
        |g| into_negated(g, "past_key_values.0.key", "present.0.key"),
        "cache-form",
        "a static cache",
    ),
    (
        "mobius-llama",
        |g| into_negated(g, "key_cache.0", "updated_key_cache.0"),
        "cache-form",
        "a static cache",
    ),
    (
        "mobius-llama",
        |g| {
            g.input
                .push(value("mask", DataType::Float.into(), &[1, 1, 1, 16]));
            let attention = g.node.iter_mut().find(|n| n.op_type() == "Attention");
            attention.unwrap().input[3] = "mask".to_owned();
        },
        "unsupported-operator",
        "its mask may be shorter than its cache",
    ),
];

#[test]
fn near_misses_are_refused_with_true_reasons() {
    for (name, change, code, words) in NEAR_MISSES {
        let mut model = loaded(name);
        change(graph(&mut model));
        let found = inspect(&model.model).unwrap();
        let reject = found
            .rejects
            .first()
            .unwrap_or_else(|| panic!("{code}: not refused"));
        assert_eq!(reject.reason.code(), code, "{reject}");
        assert!(reject.to_string().contains(words), "{words}: {reject}");
        assert_eq!(found.sites.len(), 1, "{code}");
    }
}

/// What is written is found again as what it is.
#[test]
fn a_rewritten_model_is_latent_already() {
    for name in STATIC {
        let mut after = loaded(name);
        rewritten(&mut after, RewriteOptions::default()).unwrap();
        let found = inspect(&after.model).unwrap();
        assert!(found.sites.is_empty(), "{name}");
        for reject in &found.rejects {
            assert_eq!(reject.reason.code(), "already-latent", "{name}: {reject}");
        }
        assert_eq!(found.rejects.len(), 2, "{name}");
    }
}

#[test]
fn a_scenario_that_does_not_fit_the_buffer_says_so() {
    let model = fixture("mobius-llama").join("model.onnx");
    let ids = (0..80)
        .map(|id| id.to_string())
        .collect::<Vec<_>>()
        .join(",");
    let ran = with(&[&"validate", &model, &model, &"--prompt-ids", &ids]);
    assert_ne!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("has 64 rows"), "{ran:?}");
    let told = with(&[&"inspect", &model, &"--json"]).json();
    assert_eq!(told["recognised"], json!(2));
}
