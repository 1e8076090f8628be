//! Batches whose rows differ in length, where the operator counts the tokens of each row.

use std::process::Command;

use crate::common::{Ran, fixture, folder, root, with};

const NOTE: &str = "note: every row of a batch must have the same length";

#[test]
fn a_rewrite_says_that_rows_must_have_one_length_where_the_operator_allowed_others() {
    let place = folder();
    for (model, target, said) in [
        ("genai-llama", "matmul", true),
        ("genai-llama", "gqa", false),
        ("optimum-llama", "matmul", false),
    ] {
        let (model, out) = (fixture(model), place.path().join("out.onnx"));
        let page = place.path().join("page.html");
        let ran = with(&[
            &"rewrite",
            &model,
            &"-o",
            &out,
            &"--target",
            &target,
            &"--report",
            &page,
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(ran.stdout.contains(NOTE), said, "{target}: {ran:?}");
        let page = std::fs::read_to_string(&page).unwrap();
        assert_eq!(page.contains("Every row of a batch"), said, "{target}");
    }
}

#[test]
fn the_example_refuses_to_pad_rows_of_such_a_model() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let ran = with(&[&"rewrite", &fixture("genai-llama"), &"-o", &out]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let generate = |model: &std::path::Path, second: &str| -> Ran {
        let mut command = Command::new(root().join(".venv/bin/python"));
        command.arg(root().join("examples/generate.py")).arg(model);
        let ids = ["--ids", "1,2,3", "--ids", second, "--tokens", "4"];
        command.args(ids).output().unwrap().into()
    };
    let ran = generate(&out, "4,5");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("no row may be padded on the left") && ran.stderr.lines().count() == 1,
        "{ran:?}"
    );
    assert_eq!(generate(&out, "4,5,6").code, 0);
    let padded = generate(&fixture("optimum-llama").join("model.onnx"), "4,5");
    assert_eq!(padded.code, 0, "{padded:?}");
}
