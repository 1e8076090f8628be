//! The table of what is exported and what becomes of it, docs/models.md: made here, checked in, and wrong where it is stale.

use std::fmt::Write as _;

use crate::common::{HALF, IN_BF16, SINGLE, compared, fixtures, in_ort, loaded, rewritten, root};
use crate::serving::config_json::{IN_OPTIMUM, IN_TRANSFORMERS_JS};
use crate::serving::genai::{IN_GENAI, RING_IN_GENAI};
use crate::serving::whisper;
use gqa2mla_passes::onnx::tensor_proto::DataType;
use gqa2mla_passes::{RewriteError, RewriteOptions, inspect};

const HEAD: &str = "# Models

What exporters write of each family, and what becomes of it. Each row is a fixture; fixtures/README.md says how it was made. The test
`models::` makes this table: it inspects and rewrites each fixture at full rank and runs both models in ONNX Runtime, with its own
graph optimizations off. A rewrite is exact where the logits of both differ by 2e-5 of the largest at most in single precision, and
by 2e-2 in half. Where some attentions are refused, the others are rewritten with `--allow-partial`. The other stacks are those in
which the tests of `serving::` compare the text that is generated before and after.

    UPDATE_MODELS=1 cargo test --release --test it -- models::

| model | family | exporter, version | attentions found | exact | run in |
|---|---|---|---|---|---|
";

/// What fixtures/README.md says of a fixture.
struct Made {
    exporter: String,
    family: String,
}

/// The row of `name` in the tables of fixtures/README.md, with the exporter that its section names. What is made from another
/// fixture is of the family of that one.
fn made(readme: &str, name: &str) -> Made {
    let (mut section, mut columns) = ("", Vec::new());
    for line in readme.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if line.starts_with("| folder") {
            columns = cells;
        } else if cells.first() == Some(&name) {
            let cell = |column: &str| {
                let at = columns.iter().position(|c| *c == column);
                at.and_then(|at| cells.get(at)).map(|c| (*c).to_owned())
            };
            let exporter = cell("tool").unwrap_or_else(|| {
                let made = section.strip_prefix("Made by ").unwrap_or(section);
                let made = made
                    .strip_prefix("Made from other fixtures by ")
                    .unwrap_or(made);
                let (exporter, stack) = made.rsplit_once(" (").unwrap_or((made, ""));
                let torch = stack
                    .split([',', ')'])
                    .find(|part| part.starts_with("torch "));
                match torch.filter(|_| exporter.starts_with("torch.onnx")) {
                    Some(torch) => format!("{exporter}, {torch}"),
                    None => exporter.to_owned(),
                }
            });
            let source = cell("made from").map(|source| made(readme, &source));
            let exporter = match &source {
                Some(source) => format!("{}, changed by {exporter}", source.exporter),
                None => exporter,
            };
            let family = cell("architecture").or_else(|| source.map(|source| source.family));
            return Made {
                exporter,
                family: family.unwrap_or_else(|| "Llama".to_owned()),
            };
        }
    }
    panic!("fixtures/README.md has no row for {name}");
}

fn stacks(name: &str) -> String {
    let mut stacks = vec!["ONNX Runtime"];
    if IN_GENAI.contains(&name) || name == RING_IN_GENAI {
        stacks.push("onnxruntime-genai");
    }
    if IN_OPTIMUM.contains(&name) {
        stacks.push("Optimum");
    }
    let decoders = IN_TRANSFORMERS_JS.map(|(known, _)| known);
    if decoders.contains(&name) || name == whisper::IN_TRANSFORMERS_JS {
        stacks.push("transformers.js");
    }
    stacks.join(", ")
}

/// Whether the rewrite of `name` is exact, and where that was run.
fn run(name: &str) -> (String, String) {
    let before = loaded(name);
    let mut after = loaded(name);
    let partial = RewriteOptions {
        allow_partial: true,
        ..RewriteOptions::default()
    };
    let rest = match rewritten(&mut after, RewriteOptions::default()) {
        Ok(_) => String::new(),
        Err(_) => {
            let code = inspect(&before.model).unwrap().rejects[0].reason.code();
            let refused = format!("refused: {code}");
            match rewritten(&mut after, partial) {
                Err(RewriteError::Nothing(_)) => return (refused, String::new()),
                Err(error) => panic!("{name}: {error}"),
                Ok(_) => format!("; {refused}"),
            }
        }
    };
    if name == IN_BF16 {
        return (
            "bf16, in which ONNX Runtime's CPU does not run it".to_owned(),
            String::new(),
        );
    }
    let single = inspect(&before.model).unwrap().sites[0].elem_type == DataType::Float as i32;
    let (tolerance, precision) = match single {
        true => (SINGLE, "fp32"),
        false => (HALF, "fp16"),
    };
    let comparison = compared(&before, &after, in_ort(tolerance)).unwrap();
    assert!(comparison.passed(), "{name}: {:e}", comparison.max_ratio());
    (format!("yes, {precision}{rest}"), stacks(name))
}

#[test]
fn the_table_of_models_is_what_the_models_show() {
    let readme = std::fs::read_to_string(root().join("fixtures/README.md")).unwrap();
    let mut table = HEAD.to_owned();
    for name in fixtures() {
        let Made { exporter, family } = made(&readme, &name);
        let found = inspect(&loaded(&name).model).unwrap();
        let (exact, stack) = run(&name);
        let _ = writeln!(
            table,
            "| {name} | {family} | {exporter} | {} of {} | {exact} | {stack} |",
            found.recognised(),
            found.attentions()
        );
    }
    let path = root().join("docs/models.md");
    if std::env::var_os("UPDATE_MODELS").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == table,
        "docs/models.md is stale: run UPDATE_MODELS=1 cargo test --release --test it -- models::\n{table}"
    );
}
