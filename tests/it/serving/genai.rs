//! onnxruntime-genai.

use std::io::{BufRead, BufReader};
use std::process::Command;

use super::*;

/// The fixtures that it runs before and after a rewrite.
pub const IN_GENAI: [&str; 10] = [
    "genai-llama",
    "genai-mistral",
    "genai-qwen2",
    "genai-qwen3",
    "genai-phi3",
    "genai-gemma2",
    "genai-gptoss",
    "genai-llama-int4",
    "genai-lfm2",
    "genai-longrope",
];

#[test]
#[ignore = "needs the serving stacks"]
fn genai_generates_the_same_from_every_export_of_its_builder() {
    let place = folder();
    for name in IN_GENAI {
        let original = fixture(name);
        let before = in_genai(&original, "12", SMALL);
        for target in ["matmul", "gqa"] {
            let out = place.path().join(format!("{name}-{target}"));
            let report = rewritten(&original, &out, &["--target", target]);
            assert_eq!(report["folder"]["serving"], json!(["genai"]));
            // Past and present share a buffer only where the operator that writes into it is still there.
            let shared = edited(&report)
                .iter()
                .all(|e| !e.starts_with("search.past_present"));
            assert_eq!(shared, target == "gqa", "{name}: {report:#}");
            assert_eq!(in_genai(&out, "12", SMALL), before, "{name}, {target}");
        }
    }
}

/// A fixture with a ring in its first layer, which stays.
pub const RING_IN_GENAI: &str = "genai-gemma2-ring";

/// The configuration tells the shape of the ring, and genai reads that of the latent from the session.
#[test]
#[ignore = "needs the serving stacks"]
fn a_ring_stays_and_the_other_layer_is_latent_in_genai() {
    let place = folder();
    let original = fixture(RING_IN_GENAI);
    let out = place.path().join("out");
    let report = rewritten(&original, &out, &["--allow-partial", "--target", "gqa"]);
    assert_eq!(report["rewrite"]["not_rewritten"], json!(1));
    assert_eq!(report["folder"]["serving"], json!(["genai"]));
    assert_eq!(
        in_genai(&out, "12", SMALL),
        in_genai(&original, "12", SMALL)
    );
}

/// Without `GroupQueryAttention` genai would have to append to the latent, and then it makes no ring.
#[test]
fn a_ring_beside_a_latent_that_is_appended_to_is_refused() {
    let place = folder();
    let out = place.path().join("out");
    let model = fixture(RING_IN_GENAI);
    let ran = crate::common::with(&[&"rewrite", &model, &"-o", &out, &"--allow-partial"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for words in ["sliding_window_cache", "use --target gqa", "--serving none"] {
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
    assert!(!out.exists());
}

#[test]
#[ignore = "needs the serving stacks"]
fn a_configuration_as_it_was_would_not_do_in_genai() {
    let place = folder();
    let out = place.path().join("out");
    let original = fixture("genai-llama");
    rewritten(&original, &out, &["--serving", "none"]);
    let same = fs::read(out.join("genai_config.json")).unwrap();
    assert_eq!(same, fs::read(original.join("genai_config.json")).unwrap());
    let ran = asked(
        &serving_python(),
        "tests/python/genai.py",
        &[&out, &"4", &SMALL],
    );
    assert!(!ran.status.success(), "the edits change nothing");
}

#[test]
#[ignore = "needs the serving stacks and the trained models of ../shared"]
fn a_trained_model_writes_the_same_in_genai_and_its_half_takes_half() {
    let _alone = alone();
    let original = real_model("genai-builder-fp32");
    let place = tempfile::tempdir_in(original.parent().unwrap()).unwrap();
    let before = in_genai(&original, "64", REAL);
    assert_eq!(before[0]["tokens"][0].as_array().unwrap().len(), 5 + 64);
    for target in ["matmul", "gqa"] {
        let out = place.path().join(target);
        rewritten(&original, &out, &["--target", target]);
        assert_eq!(in_genai(&out, "64", REAL), before, "{target}");
        let half = [
            "--cache-ratio",
            "0.5",
            "--factors",
            "weights",
            "--target",
            target,
        ];
        rewritten(&original, &out, &half);
        assert_eq!(
            cache_bytes(&in_genai(&out, "4", REAL)),
            [23_040.0, 23_040.0],
            "{target}"
        );
        fs::remove_dir_all(&out).unwrap();
    }
}

/// The example's server, stopped where it goes out of scope.
struct Server(std::process::Child, String);

impl Server {
    fn of(folder: &Path) -> Self {
        let mut server = Command::new(serving_python())
            .arg(root().join("examples/serve/server.py"))
            .arg(folder)
            .args(["--port", "0"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        let told = server.stdout.take().unwrap();
        BufReader::new(told).read_line(&mut address).unwrap();
        Self(server, address.trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs the serving stacks"]
fn a_client_gets_the_same_answers_from_a_server_of_either_model() {
    let place = folder();
    let (original, out) = (fixture("genai-qwen2"), place.path().join("out"));
    rewritten(&original, &out, &[]);
    let servers = [Server::of(&original), Server::of(&out)];
    let ask = |servers: &[&str], prompts: &[&str]| {
        let script = root().join("examples/serve/client.py");
        let mut client = Command::new(root().join(".venv/bin/python"));
        client
            .arg(script)
            .args(servers)
            .args(prompts)
            .output()
            .unwrap()
    };
    let addresses = servers.each_ref().map(|server| server.1.as_str());
    let told = ask(&addresses, &["the cat", "a"]);
    assert!(told.status.success(), "{told:?}");
    let answers = String::from_utf8(told.stdout).unwrap();
    for line in answers.lines() {
        let answer: Value = serde_json::from_str(line).unwrap();
        assert_eq!(answer["same"], json!(true), "{answer}");
        assert!(!answer["answers"][0].as_str().unwrap().is_empty());
    }
    assert_eq!(answers.lines().count(), 2);
    // A wrong request is answered, and the server goes on.
    let wrong = ask(&[&addresses[0].replace("completions", "chat")], &["a"]);
    let words = String::from_utf8(wrong.stderr).unwrap();
    assert!(words.contains("POST to /v1/completions"), "{words}");
    assert!(ask(&addresses, &["a"]).status.success());
}

/// From version 0.16 on it reads the shape of each layer from the session, whatever the configuration says.
#[test]
#[ignore = "needs the serving stacks"]
fn genai_serves_a_width_for_each_layer() {
    let place = folder();
    let ids = root().join("fixtures/tokens.json");
    let ids = ids.to_str().unwrap();
    let out = place.path().join("free");
    let asked = [
        "--cache-ratio",
        "0.5",
        "--layout",
        "free",
        "--token-ids",
        ids,
        "--length",
        "128",
        "--reconstruct",
        "0",
        "--force",
    ];
    let report = rewritten(&fixture("genai-qwen2"), &out, &asked);
    assert_eq!(report["folder"]["serving"], json!(["genai"]));
    let layers = report["rewrite"]["layers"].as_array().unwrap();
    for layer in layers {
        assert_eq!(layer["key_rank"], layer["value_rank"], "{report:#}");
    }
    // What it writes is what the model gives in ONNX Runtime alone.
    let prompt = "[[[5, 7, 28, 44, 31]]]";
    let told = in_genai(&out, "6", prompt);
    let alone = in_onnx_runtime(&out.join("model.onnx"), "6", &["5,7,28,44,31"]);
    let widths: Vec<u64> = layers
        .iter()
        .map(|l| 2 * l["key_rank"].as_u64().unwrap())
        .collect();
    let bytes = 4.0 * widths.iter().sum::<u64>() as f64;
    assert_eq!(cache_bytes(&told), [bytes], "{told}");
    assert!(
        alone
            .to_string()
            .contains(&told[0]["tokens"][0][10].to_string()),
        "{alone} {told}"
    );
}
