//! The JSON of every subcommand: what scripts rely on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::common::{IDS, fixture, folder, root, with};
use serde_json::{Value, json};

/// Asserts that `value` is an object that holds `keys`; more may come.
fn has(value: &Value, keys: &[&str]) {
    let object = value
        .as_object()
        .unwrap_or_else(|| panic!("no object: {value}"));
    for key in keys {
        assert!(object.contains_key(*key), "no '{key}' in {value:#}");
    }
}

#[test]
fn json_has_the_keys_that_scripts_rely_on() {
    let place = folder();
    let llama = fixture("optimum-llama");
    let out = place.path().join("model.onnx");

    let told = with(&[&"--json", &"inspect", &llama]).json();
    has(
        &told,
        &[
            "model",
            "opset",
            "nodes",
            "recognised",
            "not_recognised",
            "cache_bytes_per_token",
            "sites",
            "rejects",
            "not_sites",
        ],
    );
    has(
        &told["sites"][0],
        &[
            "layer",
            "module",
            "dialect",
            "heads",
            "kv_heads",
            "head_size",
            "value_size",
            "type",
            "cached",
            "past_key",
            "past_value",
            "cache_bytes_per_token",
            "full_rank",
        ],
    );
    let facts = json!([
        told["opset"],
        told["recognised"],
        told["not_recognised"],
        told["cache_bytes_per_token"]
    ]);
    assert_eq!(facts, json!([18, 2, 0, 2 * 2 * (16 + 16) * 4]));
    let site = &told["sites"][1];
    let facts = json!([
        site["layer"],
        site["heads"],
        site["kv_heads"],
        site["head_size"],
        site["value_size"],
        site["type"],
        site["past_key"],
        site["cache_bytes_per_token"],
        site["full_rank"]
    ]);
    assert_eq!(
        facts,
        json!([1, 8, 2, 16, 16, "float", "past_key_values.1.key", 256, 32])
    );

    let told = with(&[&"inspect", &fixture("dynamo18-latent"), &"--json"]).json();
    has(
        &told["rejects"][0],
        &["layer", "node", "code", "reason", "advice"],
    );

    let told = with(&[&"rewrite", &llama, &"-o", &out, &"--rank", &"16", &"--json"]).json();
    has(
        &told,
        &["output", "accepted", "seconds", "rewrite", "validation"],
    );
    has(
        &told["rewrite"],
        &[
            "rewritten",
            "not_rewritten",
            "rejects",
            "exact",
            "rank_min",
            "rank_max",
            "cache_bytes_per_token_before",
            "cache_bytes_per_token_after",
            "predicted_key_loss",
            "predicted_value_loss",
        ],
    );
    assert_eq!(told["output"], json!(out.display().to_string()));
    let done = &told["rewrite"];
    assert_eq!(
        json!([
            done["exact"],
            done["rank_min"],
            done["cache_bytes_per_token_before"],
            done["cache_bytes_per_token_after"]
        ]),
        json!([false, 16, 512, 256])
    );
    let loss = done["predicted_key_loss"].as_f64().unwrap();
    assert!(loss > 0.0 && loss < 1.0, "{loss}");
    let proof = &told["validation"]["proof"];
    assert_eq!(
        json!([
            proof["original_cache_bytes"],
            proof["rewritten_cache_bytes"]
        ]),
        json!([512.0, 256.0])
    );

    let told = with(&[&"validate", &llama, &out, &"--json"]).json();
    has(&told, &["passed", "proof", "optimized"]);
    for part in ["proof", "optimized"] {
        has(
            &told[part],
            &[
                "original_runtime",
                "rewritten_runtime",
                "steps",
                "original_cache_bytes",
                "rewritten_cache_bytes",
                "tolerance",
            ],
        );
        has(
            &told[part]["steps"][0],
            &[
                "scenario",
                "step",
                "batch",
                "tokens",
                "past",
                "positions",
                "max_delta",
                "max_logit",
                "ratio",
                "mean_kl",
                "top1_agreement",
                "finite",
            ],
        );
    }
    assert_eq!(
        told["passed"],
        json!(false),
        "half the rank is no exact rewrite"
    );

    let told = with(&[&"print", &llama, &"--layer", &"0", &"--json"]).json();
    has(&told, &["model", "lines"]);
    let told = with(&[&"diff", &llama, &out, &"--exit-zero", &"--json"]).json();
    has(&told, &["model", "interface", "initializers", "nodes"]);
    has(&told["nodes"], &["removed", "added"]);

    let ran = with(&[&"--json", &"inspect", &place.path().join("missing.onnx")]);
    has(&ran.json(), &["status", "exit_code", "error"]);
    assert_eq!((ran.code, &ran.json()["exit_code"]), (1, &json!(1)));
}

/// The keys of `value` and of all objects in it.
fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                found.insert(key.clone());
                keys(value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
        _ => {}
    }
}

#[test]
fn every_key_is_in_the_documentation_of_its_command() {
    let text = fs::read_to_string(root().join("docs/json.md")).unwrap();
    let section = |name: &str| {
        let from = text
            .find(&format!("\n## {name}"))
            .unwrap_or_else(|| panic!("no {name}"));
        let rest = &text[from + 4..];
        rest[..rest.find("\n## ").unwrap_or(rest.len())].to_owned()
    };
    let report = fs::read_to_string(root().join("docs/report.md")).unwrap();
    let place = folder();
    let at = |name: &str| place.path().join(name).display().to_string();
    let llama = "fixtures/optimum-llama";
    let (half, stats) = (at("half.onnx"), at("stats"));
    let [ids, tokens] = IDS;
    let commands: [(&str, Vec<&str>); 9] = [
        ("inspect", vec![llama]),
        ("inspect", vec!["fixtures/dynamo18-latent"]),
        ("calibrate", vec![llama, ids, tokens, "-o", &stats]),
        (
            "rewrite",
            vec![llama, "-o", &half, "--rank", "16", "--dry-run"],
        ),
        ("rewrite", vec![llama, "-o", &half, "--rank", "16"]),
        ("validate", vec![llama, &half]),
        ("validate", vec![llama, &half, ids, tokens]),
        ("print", vec![llama]),
        ("diff", vec![llama, &half]),
    ];
    for (command, arguments) in commands {
        let mut all: Vec<&dyn AsRef<Path>> = vec![&command];
        all.extend(arguments.iter().map(|a| a as &dyn AsRef<Path>));
        all.push(&"--json");
        let mut told = BTreeSet::new();
        keys(&with(&all).json(), &mut told);
        let name = if command == "diff" { "print" } else { command };
        let documented = match command {
            "rewrite" => section(name) + &report,
            _ => section(name),
        };
        for key in told {
            assert!(
                documented.contains(&format!("`{key}`")),
                "{command}: '{key}' is not in docs/json.md"
            );
        }
    }
}
