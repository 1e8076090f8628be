//! Whisper in transformers.js, which runs an encoder and a merged decoder: only the decoder has a cache that is rewritten.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{fixture, folder, root, run};
use crate::serving::{asked, told};

/// The fixture of a Whisper decoder that is run in transformers.js.
pub const IN_TRANSFORMERS_JS: &str = "optimum-whisper";

/// What transformers.js has to know of the model when it decodes.
const GENERATION: &str = r#"{ "decoder_start_token_id": 3, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1,
  "is_multilingual": false }"#;
/// Mel frequencies and hidden size of the fixture.
const ENCODER: [&str; 2] = ["16", "64"];
/// The states of an encoder [1, 5, 64], which are given in place of a sound.
const STATES: &str = "import sys, numpy as np
np.save(sys.argv[1], np.random.default_rng(1).standard_normal((1, 5, 64)).astype(np.float32))";

/// The fixture as a folder of a model hub, with an encoder.
fn on_a_hub(place: &Path) -> PathBuf {
    let hub = place.join("whisper");
    fs::create_dir_all(hub.join("onnx")).unwrap();
    let decoder = fixture(IN_TRANSFORMERS_JS);
    fs::copy(decoder.join("config.json"), hub.join("config.json")).unwrap();
    let merged = hub.join("onnx/decoder_model_merged.onnx");
    fs::copy(decoder.join("model.onnx"), merged).unwrap();
    fs::write(hub.join("generation_config.json"), GENERATION).unwrap();
    let script = "tests/python/tiny_encoder.py";
    let encoder = hub.join("onnx/encoder_model.onnx");
    let python = root().join(".venv/bin/python");
    let made = asked(&python, script, &[&encoder, &ENCODER[0], &ENCODER[1]]);
    assert!(made.status.success(), "{made:?}");
    hub
}

fn rewritten(from: &Path, to: &Path, more: &[&str]) {
    let mut arguments = vec!["rewrite".into(), from.to_path_buf()];
    arguments.extend(["-o".into(), to.to_path_buf()]);
    arguments.extend(more.iter().map(PathBuf::from));
    let ran = run(arguments);
    assert_eq!(ran.code, 0, "{ran:?}");
}

fn heard(folder: &Path) -> Value {
    told(Path::new("node"), "tests/js/whisper.mjs", &[&folder, &"12"])
}

#[test]
#[ignore = "needs the serving stacks"]
fn whisper_hears_the_same_and_at_half_the_rank_caches_half() {
    let place = folder();
    let hub = on_a_hub(place.path());
    let original = heard(&hub);
    let exact = place.path().join("exact");
    rewritten(&hub, &exact, &[]);
    assert_eq!(heard(&exact), original);
    // Calibrated with token ids and a given output of the encoder.
    let states = place.path().join("states.npy");
    let made = std::process::Command::new(root().join(".venv/bin/python"))
        .args(["-c", STATES])
        .arg(&states)
        .status();
    assert!(made.unwrap().success());
    let given = format!("encoder_hidden_states={}", states.display());
    let ids = root().join("fixtures/tokens.json").display().to_string();
    let half = place.path().join("half");
    let calibrated = [
        "--cache-ratio",
        "50%",
        "--token-ids",
        &ids,
        "--input",
        &given,
    ];
    rewritten(
        &hub,
        &half,
        &[&calibrated[..], &["--length", "64", "--force"]].concat(),
    );
    let (half, whole) = (heard(&half), &original[0]["cache_bytes"]);
    assert_eq!(
        half[0]["cache_bytes"].as_f64(),
        whole.as_f64().map(|b| b / 2.0)
    );
    assert_eq!(
        half[0]["tokens"][0].as_array().map(Vec::len),
        original[0]["tokens"][0].as_array().map(Vec::len)
    );
}
