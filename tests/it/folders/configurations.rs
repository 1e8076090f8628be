//! What is edited in configurations, and what is refused.

use super::*;

#[test]
fn a_configuration_keeps_what_it_has_beyond_the_edited_keys() {
    let place = folder();
    let text = "{\n  // as exported\n  \"zebra\": [1, 2.50, 1e-05],\n\t\"model_type\": \"llama\", \"hidden_size\": 64,\n  \"unknown\": {\"num_key_value_heads\": 2},\n  \"num_attention_heads\": 8,\n  \"num_key_value_heads\": 2, /* two */\n  \"name\": \"caf\\u00e9\"\n}\n";
    let from = with_config(place.path(), "from", "config.json", text);
    let out = place.path().join("out");
    let ran = rewrite(&from, &out, &["--no-validate"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let expected = text
        .replace("\"hidden_size\": 64", "\"hidden_size\": 256")
        .replace(
            "\"num_key_value_heads\": 2, /* two */",
            "\"num_key_value_heads\": 1, /* two */",
        );
    assert_eq!(
        fs::read_to_string(out.join("config.json")).unwrap(),
        expected
    );
    for line in ["num_key_value_heads 2 -> 1", "hidden_size 64 -> 256"] {
        assert!(ran.stdout.contains(line), "{}", ran.stdout);
    }
}

#[test]
fn a_key_that_a_stack_would_fill_in_is_added() {
    let place = folder();
    let text = "{\"model_type\": \"mistral\", \"hidden_size\": 64, \"num_attention_heads\": 8}";
    let from = with_config(place.path(), "from", "config.json", text);
    let out = place.path().join("out");
    let ran = rewrite(&from, &out, &["--no-validate"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let told: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        (&told["num_key_value_heads"], &told["hidden_size"]),
        (&json!(1), &json!(256))
    );
}

#[test]
fn what_cannot_be_served_is_refused_and_nothing_is_written() {
    let place = folder();
    let broken =
        |name: &str, config: &str, text: &str| with_config(place.path(), name, config, text);
    let out = place.path().join("out");
    let free = [
        "--layout",
        "free",
        "--cache-ratio",
        "0.5",
        "--token-ids",
        "fixtures/tokens.json",
    ];
    let odd = "{\"model_type\": \"falcon\", \"hidden_size\": 64, \"num_attention_heads\": 8}";
    let pipeline = "{\"model\": {\"decoder\": {\"pipeline\": [{}]}}}";
    let cases: [(PathBuf, &[&str], &str); 9] = [
        (
            broken("json", "config.json", "{\"a\": 1,, }"),
            &[],
            "config.json: ",
        ),
        (
            broken("list", "genai_config.json", "[1]"),
            &[],
            "expected a JSON object",
        ),
        (
            broken("pbtxt", "config.pbtxt", "input [\n{ name: \"x }"),
            &[],
            "line 2: a string has no end",
        ),
        (
            broken("empty", "config.json", "{}"),
            &[],
            "hidden_size and num_attention_heads",
        ),
        (broken("falcon", "config.json", odd), &[], "falcon"),
        (
            broken("pipeline", "genai_config.json", pipeline),
            &[],
            "pipeline of models",
        ),
        (fixture("optimum-llama"), &free, "--layout uniform"),
        (
            fixture("optimum-llama"),
            &["--serving", "genai"],
            "genai reads genai_config.json, which is not in the folder",
        ),
        (
            folder_of_text(place.path()),
            &[],
            "no .onnx file in this folder",
        ),
    ];
    for (from, more, words) in cases {
        let ran = rewrite(&from, &out, &[more, &["--no-validate"]].concat());
        assert_eq!(ran.code, 1, "{}: {ran:?}", from.display());
        assert!(
            ran.stderr.contains(words),
            "{}: {}",
            from.display(),
            ran.stderr
        );
        assert!(!out.exists(), "{}", from.display());
    }
    let left: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with('.')),
        "{left:?}"
    );
    // What is refused for one stack is written as it is for none.
    let ran = rewrite(
        &place.path().join("falcon"),
        &out,
        &["--no-validate", "--serving", "none"],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let file = rewrite(
        &fixture("optimum-llama").join("model.onnx"),
        &out,
        &["--serving", "genai"],
    );
    assert_eq!(file.code, 2, "{file:?}");
}

/// A model and its configuration in the folder `name`.
fn with_config(place: &Path, name: &str, config: &str, text: &str) -> PathBuf {
    let from = place.join(name);
    fs::create_dir_all(&from).unwrap();
    let model = fixture("optimum-llama").join("model.onnx");
    fs::copy(model, from.join("model.onnx")).unwrap();
    fs::write(from.join(config), text).unwrap();
    from
}

fn folder_of_text(place: &Path) -> PathBuf {
    let from = place.join("text");
    fs::create_dir_all(&from).unwrap();
    fs::write(from.join("config.json"), "{}").unwrap();
    from
}
