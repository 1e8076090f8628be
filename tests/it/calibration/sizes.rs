//! What factors lose at a size, and sizes that are found by what is lost.

use super::*;

/// On the fixtures, whose weights are random, data says what to keep and weights do not.
#[test]
fn statistics_lose_less_than_weights_and_reconstruction_less_again() {
    let place = folder();
    for name in ["optimum-llama", "dynamo18-qwen3", "genai-llama"] {
        let statistics = statistics(name, place.path()).display().to_string();
        let out = place.path().join("model.onnx");
        let lost = |more: &[&str]| {
            half(name, &out, more);
            kl_on_text(name, &out)
        };
        let weights = lost(&["--factors", "weights"]);
        let calibrated = lost(&["--calibration", &statistics]);
        let ids = ids().display().to_string();
        let text = ["--token-ids", &ids, "--length", LENGTH];
        let mut more = vec!["--calibration", &statistics, "--reconstruct", "150"];
        more.extend(text);
        let reconstructed = lost(&more);
        assert!(
            calibrated < weights,
            "{name}: {calibrated} from statistics, {weights} from weights"
        );
        assert!(
            reconstructed < calibrated,
            "{name}: {reconstructed} reconstructed, {calibrated} before"
        );
    }
}

/// Rotations of whole heads in halves, by the operator, of a part of each head and of neighbours; heads that are rotated
/// before they are split; a single head. Where the rotation is another, the report says so and the factors stay.
#[test]
fn the_expanded_form_is_reconstructed_through_its_rotation() {
    let place = folder();
    let out = place.path().join("model.onnx");
    let ids = ids().display().to_string();
    let told = |name: &str| {
        // The widest of these caches has seven tokens for each direction.
        let mut more = vec!["--form", "expanded", "--reconstruct", "150", "--force"];
        more.extend(["--token-ids", &ids, "--length", LENGTH]);
        half(name, &out, &more)["reconstruction"].clone()
    };
    for name in [
        "optimum-llama",
        "dynamo23-llama",
        "dynamo18-phi3-partial",
        "dynamo18-glm",
        "genai-phi3",
        "dynamo18-llama-mqa",
    ] {
        for layer in told(name).as_array().unwrap() {
            let error = |key: &str| layer[key].as_f64().unwrap();
            let (before, after) = (error("error_before"), error("error_after"));
            assert!(0.0 < after && after <= before, "{name}: {layer}");
        }
    }
    // What is learnt from some three hundred tokens is little; but from one rotation to the next it is not nothing.
    let llama = told("optimum-llama");
    assert!(llama[0]["error_after"].as_f64() < llama[0]["error_before"].as_f64());
    let deepseek = told("dynamo18-deepseek-v3");
    let why = deepseek[0]["not_reconstructed"].as_str().unwrap();
    assert!(why.contains("rotated in another way"), "{why}");
}

#[test]
fn a_search_keeps_its_promise_on_the_held_out_text() {
    let place = folder();
    let (name, ids) = ("optimum-llama", ids().display().to_string());
    for (option, limit, key) in [
        ("--max-kl", "0.02", "loss"),
        ("--max-perplexity-increase", "1%", "loss"),
    ] {
        let out = place.path().join("model.onnx");
        let ran = with(&[
            &"rewrite",
            &fixture(name),
            &"-o",
            &out,
            &option,
            &limit,
            &"--token-ids",
            &ids,
            &"--length",
            &LENGTH,
            &"--reconstruct",
            &"0",
            &"--json",
        ]);
        assert_eq!(ran.code, 0, "{option}: {ran:?}");
        let told = ran.json();
        let search = &told["search"];
        let (limit, rank) = (search["limit"].as_f64().unwrap(), &search["rank"]);
        let curve = search["curve"].as_array().unwrap();
        let kept = curve.iter().find(|p| p["rank"] == *rank).unwrap();
        assert!(kept[key].as_f64().unwrap() <= limit, "{option}: {search:#}");
        // The next smaller rank that was tried breaks the promise: the search went as far as it could.
        let smaller = curve
            .iter()
            .filter(|p| p["rank"].as_u64() < rank.as_u64())
            .all(|p| p[key].as_f64().unwrap() > limit);
        assert!(smaller, "{option}: {search:#}");
        assert_eq!(told["rewrite"]["rank_max"], *rank);
    }
}

#[test]
fn a_free_layout_spends_the_same_budget_and_loses_no_more_than_one_width_for_all() {
    let place = folder();
    let ids = ids().display().to_string();
    let name = "optimum-llama";
    let data = ["--token-ids", &ids, "--length", LENGTH];
    let data = [&data[..], &["--reconstruct", "0"]].concat();
    let free = place.path().join("free.onnx");
    let told = half(name, &free, &[&data[..], &["--layout", "free"]].concat());
    let layouts = &told["layouts"];
    let (lost, uniform) = (&layouts["free_kl"], &layouts["uniform_kl"]);
    assert_eq!(
        layouts["kept"] == "free",
        lost.as_f64() < uniform.as_f64(),
        "{layouts:#}"
    );
    // On this model the layers do differ, so that there is something to gain.
    assert_eq!(layouts["kept"], "free", "{layouts:#}");
    let rewrite = &told["rewrite"];
    assert_eq!(
        rewrite["cache_bytes_per_token_after"].as_u64(),
        rewrite["cache_bytes_per_token_before"]
            .as_u64()
            .map(|b| b / 2)
    );
    assert_ne!(rewrite["rank_min"], rewrite["rank_max"]);
    // What is written is what was measured: its caches have the widths that were allotted.
    let report = with(&[
        &"validate",
        &fixture(name),
        &free,
        &"--token-ids",
        &ids,
        &"--json",
    ]);
    let report = report.json();
    assert_eq!(
        report["quality"]["rewritten_cache_bytes"].as_f64(),
        rewrite["cache_bytes_per_token_after"].as_f64()
    );
    // The model says what was expected of it, beside what is measured.
    let noted = report["made_by"]["layers"][0].as_object().unwrap();
    assert_eq!(noted.len(), 5, "{noted:?}");
    for (key, value) in noted {
        assert_eq!(&rewrite["layers"][0][key], value, "{key}");
    }
}

#[test]
fn factors_from_weights_alone_look_at_contexts_of_the_length_that_is_served() {
    let place = folder();
    let out = place.path().join("model.onnx");
    let lost = |context: &str| {
        let told = half(
            "optimum-llama",
            &out,
            &["--factors", "weights", "--context", context],
        );
        told["rewrite"]["predicted_key_loss"].as_f64().unwrap()
    };
    // At one position nothing is turned; the longer the context, the more directions keys take, and the more is lost.
    let (one, few, many) = (lost("1"), lost("8"), lost("4096"));
    assert!(one < few && few < many, "{one} {few} {many}");
    assert_eq!(lost("4096"), many);
}

#[test]
fn at_full_rank_every_factorization_is_exact_in_both_forms() {
    let place = folder();
    for name in [
        "optimum-qwen2",
        "dynamo18-llama-fp16",
        "genai-phi3",
        "dynamo18-dv",
    ] {
        let statistics = statistics(name, place.path());
        let told = with(&[&"inspect", &fixture(name), &"--json"]).json();
        let full = told["sites"][0]["full_rank"].to_string();
        for factors in ["weights", "plain", "weighted", "calibrated"] {
            for form in ["absorbed", "expanded"] {
                let out = place.path().join("model.onnx");
                let mut arguments: Vec<PathBuf> = vec!["rewrite".into(), fixture(name)];
                arguments.extend(["-o".into(), out, "--rank".into(), full.clone().into()]);
                arguments.extend(["--factors".into(), factors.into()]);
                arguments.extend(["--form".into(), form.into(), "--json".into()]);
                if factors != "weights" {
                    arguments.extend(["--calibration".into(), statistics.clone()]);
                }
                let ran = run(arguments);
                assert_eq!(ran.code, 0, "{name}, {factors}, {form}: {ran:?}");
                let told = ran.json();
                assert_eq!(
                    told["rewrite"]["exact"],
                    json!(true),
                    "{name}, {factors}, {form}"
                );
                let passed = &told["validation"]["passed"];
                assert_eq!(*passed, json!(true), "{name}, {factors}, {form}: {told:#}");
            }
        }
    }
}

/// A budget that leaves nothing out, and one that is wider than the values are: every side keeps some width.
#[test]
fn a_free_layout_of_a_full_cache_leaves_no_side_without_a_width() {
    let place = folder();
    let ids = ids().display().to_string();
    let out = place.path().join("model.onnx");
    for (name, ratio) in [("optimum-llama", "1"), ("dynamo18-dv", "0.9")] {
        let mut arguments: Vec<PathBuf> = vec!["rewrite".into(), fixture(name), "--json".into()];
        let options = [
            "--layout",
            "free",
            "--cache-ratio",
            ratio,
            "--reconstruct",
            "0",
        ];
        let text = ["--token-ids", &ids, "--length", LENGTH];
        arguments.extend(options.iter().chain(&text).map(PathBuf::from));
        arguments.extend(["-o".into(), out.clone()]);
        let ran = run(arguments);
        assert_eq!(ran.code, 0, "{name} at {ratio}: {ran:?}");
        let told = ran.json();
        assert!(told["rewrite"]["rank_min"].as_u64() > Some(0), "{told:#}");
    }
}

/// DeepSeek's keys and values are made of 16 latent numbers and one rotated head of 8, and exporters cache them unpacked:
/// 4 x (24 + 16) numbers a layer and token. Before the rotation that is found again, and 24 + 24 numbers hold all of it.
#[test]
fn the_expanded_form_finds_the_latents_that_a_model_is_made_of() {
    let place = folder();
    let name = "dynamo18-deepseek-v3";
    let statistics = statistics(name, place.path());
    for (rank, holds_all) in [("24", true), ("23", false)] {
        let out = place.path().join(rank);
        let ran = with(&[
            &"rewrite",
            &fixture(name),
            &"-o",
            &out,
            &"--form",
            &"expanded",
            &"--rank",
            &rank,
            &"--calibration",
            &statistics,
            &"--json",
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let told = ran.json();
        let steps = told["validation"]["proof"]["steps"].as_array().unwrap();
        let ratios = steps.iter().map(|step| step["ratio"].as_f64().unwrap());
        let ratio = ratios.fold(0.0, f64::max);
        // Rounding in fp32 on this model is 1e-6.
        assert_eq!(ratio < 1e-5, holds_all, "rank {rank}: {ratio:e}");
    }
}
