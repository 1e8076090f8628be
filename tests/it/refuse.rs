//! What is refused, at which node, for which reason, and that a refusal leaves no trace.

#[path = "refuse/cases.rs"]
pub mod cases;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Ran, SINGLE, fixture, run};
use cases::{
    CASES,
    Rest::{Exact, Nothing, Unproved},
};
use gqa2mla_passes::graph::build::node;
use gqa2mla_passes::onnx::{GraphProto, ModelProto, NodeProto};
use serde_json::{Value, json};

/// Files and folders in `folder`, hidden ones included.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Asks for a rewrite of `model` into a folder that does not exist yet.
fn attempt(model: &Path, folder: &Path, options: &[&str]) -> Ran {
    let out = folder.join("not/yet/there/model.onnx");
    let mut arguments = vec![
        PathBuf::from("rewrite"),
        model.to_path_buf(),
        PathBuf::from("-o"),
        out,
    ];
    arguments.extend(options.iter().map(PathBuf::from));
    run(arguments)
}

#[test]
fn every_near_miss_is_in_the_table() {
    let mut there: Vec<String> = names_in(&fixture("near_miss"))
        .iter()
        .map(|n| format!("near_miss/{n}"))
        .collect();
    there.retain(|name| name.ends_with(".onnx"));
    there.sort();
    let mut known: Vec<&str> = CASES
        .iter()
        .map(|c| c.0)
        .filter(|n| n.starts_with("near_miss/"))
        .collect();
    known.sort_unstable();
    assert_eq!(there, known);
}

#[test]
fn every_near_miss_is_refused_at_its_node_for_its_reason_and_leaves_no_trace() {
    for (name, code, node, found, expected, rest) in CASES {
        let folder = tempfile::tempdir().unwrap();
        let ran = attempt(&fixture(name), folder.path(), &[]);
        assert_eq!(ran.code, 3, "{name}: {ran:?}");
        assert_eq!(
            names_in(folder.path()),
            [""; 0],
            "{name}: something was written"
        );
        for part in [
            name,
            "layer 0: ",
            found,
            expected,
            &format!("(node '{node}')"),
        ] {
            assert!(
                ran.stderr.contains(part),
                "{name}: no '{part}' in: {}",
                ran.stderr
            );
        }
        assert_eq!(
            ran.stderr.contains("--allow-partial"),
            rest != Nothing,
            "{name}: {}",
            ran.stderr
        );

        let ran = run([Path::new("inspect"), &fixture(name), Path::new("--json")]);
        assert_eq!(ran.code, 3, "{name}: {ran:?}");
        let told = ran.json();
        let first = &told["rejects"][0];
        assert_eq!(
            [&first["layer"], &first["code"], &first["node"]],
            [&json!(0), &json!(code), &json!(node)],
            "{name}"
        );
        let layers = |key: &str| -> Vec<Value> {
            told[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|s| s["layer"].clone())
                .collect()
        };
        let (rejected, recognised): (&[i32], &[i32]) = if rest == Nothing {
            (&[0, 1], &[])
        } else {
            (&[0], &[1])
        };
        assert_eq!(
            (layers("rejects"), layers("sites")),
            (
                rejected.iter().map(|l| json!(l)).collect(),
                recognised.iter().map(|l| json!(l)).collect()
            ),
            "{name}"
        );
        for reject in told["rejects"].as_array().unwrap() {
            assert!(
                reject["advice"]
                    .as_str()
                    .is_some_and(|text| text.len() > 20),
                "{name}: {reject}"
            );
        }

        let ran = run([Path::new("inspect"), &fixture(name), Path::new("--why")]);
        for part in [found, expected, node, &format!("reason: {code}"), "to do: "] {
            assert!(
                ran.stdout.contains(part),
                "{name}: no '{part}' in: {}",
                ran.stdout
            );
        }
    }
}

#[test]
fn a_refused_layer_stays_as_it_is_and_the_other_loses_nothing() {
    for (name, _, node, _, _, rest) in CASES {
        let folder = tempfile::tempdir().unwrap();
        let tolerance = SINGLE.to_string();
        let ran = attempt(
            &fixture(name),
            folder.path(),
            &["--allow-partial", "--tolerance", &tolerance, "--json"],
        );
        let told = ran.json();
        match rest {
            Exact => {
                assert_eq!(ran.code, 0, "{name}: {ran:?}");
                let done = &told["rewrite"];
                assert_eq!(
                    (&done["rewritten"], &done["not_rewritten"]),
                    (&json!(1), &json!(1)),
                    "{name}"
                );
                assert_eq!(done["rejects"][0]["node"], json!(node), "{name}");
                assert_eq!(told["validation"]["passed"], json!(true), "{name}");
                assert_eq!(
                    told["validation"]["proof"]["tolerance"],
                    json!(SINGLE),
                    "{name}"
                );
                let output = told["output"].as_str().unwrap();
                // The second layer is latent now, and the first is refused as before.
                let after = run(["inspect", output, "--json"]).json();
                assert_eq!(after["rejects"][0]["node"], json!(node), "{name}");
                let again = after["sites"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|s| s["layer"] == json!(1) && s["kv_heads"] != json!(1));
                assert!(
                    !again,
                    "{name}: the second layer still caches several heads: {after:#}"
                );
            }
            Nothing => assert_eq!(ran.code, 3, "{name}: {ran:?}"),
            Unproved => {
                assert_eq!(ran.code, 1, "{name}: {ran:?}");
                assert!(
                    ran.stderr.contains("the original model failed in"),
                    "{name}: {ran:?}"
                );
                assert!(
                    ran.stderr.contains("--no-validate"),
                    "{name}: what can the user do? {ran:?}"
                );
            }
        }
        if rest != Exact {
            assert_eq!(
                names_in(folder.path()),
                [""; 0],
                "{name}: something was written"
            );
        }
    }
}

/// A model that multiplies and normalizes, and attends to nothing.
fn without_attention(folder: &Path) -> PathBuf {
    use prost::Message;
    let original = crate::common::loaded("optimum-llama").model.proto;
    let source = original.graph.unwrap();
    let nodes: Vec<NodeProto> = vec![
        node("Cast", "as_float", &["input_ids"], &["floats"]).with_int("to", 1),
        node("Unsqueeze", "logits", &["floats", "last"], &["logits"]),
    ];
    let input = source
        .input
        .into_iter()
        .find(|v| v.name() == "input_ids")
        .unwrap();
    let output = source
        .output
        .into_iter()
        .find(|v| v.name() == "logits")
        .unwrap();
    let graph = GraphProto {
        name: Some("plain".to_owned()),
        node: nodes,
        initializer: vec![gqa2mla_passes::graph::build::int64_vector("last", &[-1])],
        input: vec![input],
        output: vec![output],
        ..GraphProto::default()
    };
    let model = ModelProto {
        graph: Some(graph),
        ..original
    };
    let path = folder.join("plain.onnx");
    fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

#[test]
fn a_model_without_attention_has_nothing_to_rewrite() {
    let folder = tempfile::tempdir().unwrap();
    let model = without_attention(folder.path());
    for options in [
        &[][..],
        &["--allow-partial"],
        &["--no-validate"],
        &["--rank", "8"],
    ] {
        let ran = attempt(&model, folder.path(), options);
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(
            ran.stderr
                .contains("nothing to rewrite: no attention was found"),
            "{ran:?}"
        );
        assert_eq!(
            names_in(folder.path()),
            ["plain.onnx"],
            "something was written"
        );
    }
    let ran = run([Path::new("inspect"), &model]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.stdout.contains("0 of 0 attentions recognised"),
        "{ran:?}"
    );
}

/// Self-attention of an image encoder: no cache, no rotation, and keys that one Transpose turns into the product's operand.
#[test]
fn keys_that_one_transpose_makes_of_their_rows_are_told_as_that() {
    use gqa2mla_passes::graph::build::{floats, int64_vector, value};
    let name = |mut tensor: gqa2mla_passes::onnx::TensorProto, name: &str| {
        tensor.name = Some(name.to_owned());
        tensor
    };
    let weight = |letter: &str| name(floats(&[32, 32], &[0.1; 1024]), &format!("w{letter}"));
    let mut nodes = Vec::new();
    for (letter, perm) in [
        ("q", [0, 2, 1, 3]),
        ("k", [0, 2, 3, 1]),
        ("v", [0, 2, 1, 3]),
    ] {
        let [weight, flat, rows, operand] =
            ["w", "flat_", "rows_", ""].map(|prefix| format!("{prefix}{letter}"));
        nodes.push(node("MatMul", &flat, &["x", &weight], &[&flat]));
        nodes.push(node("Reshape", &rows, &[&flat, "split"], &[&rows]));
        let transposed = node("Transpose", &operand, &[&rows], &[&operand]);
        nodes.push(transposed.with_ints("perm", &perm));
    }
    nodes.push(node("MatMul", "scores", &["q", "k"], &["scores"]));
    nodes.push(node("Softmax", "shares", &["scores"], &["shares"]).with_int("axis", -1));
    nodes.push(node("MatMul", "heads", &["shares", "v"], &["heads"]));
    let graph = GraphProto {
        name: Some("encoder".to_owned()),
        node: nodes,
        initializer: vec![
            weight("q"),
            weight("k"),
            weight("v"),
            name(int64_vector("split", &[2, 5, 4, 8]), "split"),
        ],
        input: vec![value("x", 1, &[2, 5, 32])],
        output: vec![value("heads", 1, &[2, 4, 5, 8])],
        ..GraphProto::default()
    };
    let mut model = crate::common::loaded("optimum-llama").model;
    model.proto.graph = Some(graph);
    let found = gqa2mla_passes::inspect(&model).unwrap();
    let told = found.rejects[0].to_string();
    for words in [
        "the key 'k' has shape [2, 4, 8, 5], by one Transpose of 'rows_k' [2, 5, 4, 8]",
        "expected two",
        "(node 'k')",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
}
