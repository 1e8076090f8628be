//! Texts, statistics and sizes that do not fit.

use super::*;

#[test]
fn what_does_not_belong_together_is_refused_and_nothing_is_written() {
    let place = folder();
    let out = place.path().join("model.onnx");
    let statistics = statistics("optimum-llama", place.path());
    let write = |name: &str, content: &str| {
        let path = place.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let tokenizer = |tokens: usize| {
        let vocabulary: serde_json::Map<String, Value> =
            (0..tokens).map(|n| (format!("w{n}"), json!(n))).collect();
        let model = json!({ "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" });
        json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
                "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null, "model": model })
        .to_string()
    };
    let good = write("tokenizer.json", &tokenizer(128));
    let large = write("large.json", &tokenizer(300));
    let small = write("small.json", &tokenizer(40));
    let words = write("words.txt", "w1 w2 w3 w4 w5 w6 w7 w8 w9");
    let empty = write("empty.txt", "");
    let beyond = write("beyond.json", "[1, 2, 500]");
    let no_list = write("no_list.json", "{\"a\": 1}");
    let statistics = statistics.display().to_string();
    let ids = ids().display().to_string();
    let half = ["--cache-ratio", "0.5"];
    let cases: [(&str, Vec<&str>, i32, &str); 16] = [
        (
            "optimum-llama",
            vec!["--layout", "free", "--token-ids", &ids],
            2,
            "divides a budget",
        ),
        (
            "genai-llama",
            [
                &half[..],
                &["--layout", "free", "--target", "gqa", "--token-ids", &ids],
            ]
            .concat(),
            2,
            "leave out --layout free",
        ),
        (
            "dynamo18-llama",
            [&half[..], &["--calibration", &statistics]].concat(),
            1,
            "another model",
        ),
        (
            "optimum-llama",
            [&half[..], &["--text", &words, "--tokenizer", &large]].concat(),
            1,
            "300 tokens and the model 128",
        ),
        (
            "optimum-llama",
            [&half[..], &["--text", &words, "--tokenizer", &small]].concat(),
            1,
            "40 tokens and the model 128",
        ),
        (
            "optimum-llama",
            [&half[..], &["--text", &empty, "--tokenizer", &good]].concat(),
            1,
            "it has 0 tokens, and at least",
        ),
        (
            "optimum-llama",
            [&half[..], &["--text", &words]].concat(),
            2,
            "--tokenizer",
        ),
        (
            "optimum-llama",
            [&half[..], &["--text", &words, "--tokenizer", &words]].concat(),
            1,
            "not a tokenizer.json",
        ),
        (
            "optimum-llama",
            [&half[..], &["--token-ids", &beyond]].concat(),
            1,
            "token id 500",
        ),
        (
            "optimum-llama",
            [&half[..], &["--token-ids", &no_list]].concat(),
            1,
            "one JSON list",
        ),
        (
            "optimum-llama",
            [&half[..], &["--calibration", &ids]].concat(),
            1,
            "not a gqa2mla statistics",
        ),
        (
            "optimum-llama",
            [&half[..], &["--factors", "calibrated"]].concat(),
            2,
            "no text",
        ),
        (
            "optimum-llama",
            vec!["--cache-ratio", "0"],
            2,
            "cache ratio 0",
        ),
        (
            "optimum-llama",
            vec!["--cache-ratio", "1.5"],
            2,
            "a share is at most 1",
        ),
        ("optimum-llama", vec!["--max-kl=-1"], 2, "not negative"),
        (
            "optimum-llama",
            vec!["--rank", "8", "--cache-ratio", "0.5"],
            2,
            "cannot be used with",
        ),
    ];
    for (name, more, code, words) in cases {
        let mut arguments: Vec<String> = ["rewrite".to_owned()].to_vec();
        arguments.push(fixture(name).display().to_string());
        arguments.extend(["-o".to_owned(), out.display().to_string()]);
        arguments.extend(more.iter().map(|&m| m.to_owned()));
        let ran = run(arguments.iter().map(PathBuf::from));
        assert_eq!(ran.code, code, "{more:?}: {ran:?}");
        assert!(ran.stderr.contains(words), "{more:?}: {}", ran.stderr);
        assert!(!out.exists(), "{more:?} wrote something");
    }
}
