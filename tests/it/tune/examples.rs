//! Training on examples of prompt and answer, and its report.

use std::fs;
use std::path::{Path, PathBuf};

use super::held_out;
use crate::common::{Ran, command, fixture, folder};

/// Sums with a small vocabulary of words, as lines of prompt and answer.
fn sums(place: &Path, count: usize) -> PathBuf {
    let file = place.join("sums.jsonl");
    let line = |n: usize| {
        let (a, b) = (n % 7, n % 5);
        let row = serde_json::json!({"prompt": format!("{a} plus {b} is"), "answer": format!(" {}", a + b)});
        format!("{row}\n")
    };
    fs::write(&file, (0..count).map(line).collect::<String>()).unwrap();
    file
}

/// `tune` on `examples`, for the model `name` with the tokenizer of its folder.
fn tune_on(examples: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut tune = command();
    tune.arg("tune")
        .arg(fixture("genai-qwen2").join("model.onnx"));
    tune.arg("--examples").arg(examples).arg("-o").arg(out);
    tune.args(["--objective", "next-token", "--train", "kv", "--json"]);
    tune.args(more).output().unwrap().into()
}

#[test]
fn examples_teach_answers_and_the_report_shows_the_curves_of_two_runs() {
    let place = folder();
    let (file, out) = (sums(place.path(), 60), place.path().join("tuned.onnx"));
    let at = |name: &str| place.path().join(name).display().to_string();
    let options = ["--steps", "30", "--rate", "0.05", "--batch", "4"];
    let ran = tune_on(
        &file,
        &out,
        &[&options[..], &["--report", &at("one.json")]].concat(),
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let (first, best) = held_out(&ran.json());
    assert!(best < first, "held-out {first} to {best}");
    assert!(ran.json()["tuned"]["best"]["right"].is_number(), "{ran:?}");
    assert_eq!(ran.json()["sequences"], 40);

    let page = [
        "--steps",
        "2",
        "--report",
        &at("two.html"),
        "--beside",
        &at("one.json"),
    ];
    let ran = tune_on(&file, &out, &page);
    assert_eq!(ran.code, 0, "{ran:?}");
    let page = fs::read_to_string(at("two.html")).unwrap();
    assert!(page.contains("one.json") && page.matches("<svg").count() == 3);
    // A page of its own is replaced, a foreign file is not.
    assert_eq!(
        tune_on(&file, &out, &["--steps", "1", "--report", &at("two.html")]).code,
        0
    );
    fs::write(at("notes.json"), "{}").unwrap();
    let ran = tune_on(
        &file,
        &out,
        &["--steps", "1", "--report", &at("notes.json")],
    );
    assert_eq!(ran.code, 2, "{ran:?}");
}

#[test]
fn examples_that_cannot_be_read_are_told_by_their_line() {
    let place = folder();
    let file = place.path().join("rows.jsonl");
    let out = place.path().join("tuned.onnx");
    for (rows, told) in [
        (
            "{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"a\"}\n",
            "line 2",
        ),
        ("[1, 2]\n", "line 1"),
        ("{\"prompt\": \"a\", \"answer\": \"\"}\n", "line 1"),
        ("\n", "no examples"),
        ("{\"prompt\": \"a\", \"answer\": \"b\"}\n", "at least 3"),
    ] {
        fs::write(&file, rows).unwrap();
        let ran = tune_on(&file, &out, &[]);
        assert_eq!(ran.code, 1, "{rows}: {ran:?}");
        assert!(ran.stderr.contains(told), "{rows}: {ran:?}");
        assert!(!out.exists());
    }
}
