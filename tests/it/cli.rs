//! The command as users and scripts meet it: exit codes, JSON, help, and what it leaves behind.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Ran, command, fixture, folder, loaded, root, with};
use gqa2mla::files::save::save;

/// A rewritten `optimum-llama` in `folder`.
fn rewritten(folder: &Path) -> PathBuf {
    let out = folder.join("model.onnx");
    let ran = with(&[
        &"rewrite",
        &fixture("optimum-llama"),
        &"-o",
        &out,
        &"--no-validate",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    out
}

/// `optimum-llama` with one weight of its embedding changed.
fn perturbed(folder: &Path) -> PathBuf {
    let mut model = loaded("optimum-llama");
    let graph = model.model.proto.graph.as_mut().unwrap();
    let table = graph
        .initializer
        .iter_mut()
        .find(|t| t.name().contains("embed_tokens"))
        .unwrap();
    let mut bytes = table.raw_data.as_ref().unwrap().to_vec();
    for number in bytes.chunks_exact_mut(4) {
        let value = f32::from_le_bytes(number.try_into().unwrap());
        number.copy_from_slice(&(value + 0.5).to_le_bytes());
    }
    table.raw_data = Some(bytes.into());
    let path = folder.join("perturbed.onnx");
    save(&model, &path).unwrap();
    path
}

#[test]
fn every_kind_of_ending_has_its_exit_code() {
    let place = folder();
    let (good, wrong) = (rewritten(place.path()), perturbed(place.path()));
    let (llama, out) = (fixture("optimum-llama"), place.path().join("out.onnx"));
    let missing = place.path().join("missing.onnx");
    let (latent, uneven) = (fixture("dynamo18-latent"), fixture("dynamo18-dv"));
    let cases: &[(i32, &[&dyn AsRef<Path>])] = &[
        (0, &[&"--help"]),
        (0, &[&"--version"]),
        (0, &[&"inspect", &llama]),
        (0, &[&"print", &llama]),
        (0, &[&"diff", &llama, &llama]),
        (1, &[&"diff", &llama, &good]),
        (0, &[&"diff", &llama, &good, &"--exit-zero"]),
        (0, &[&"validate", &llama, &good]),
        (0, &[&"rewrite", &llama, &"-o", &out]),
        // An approximation is not held to the tolerance of an exact rewrite.
        (0, &[&"rewrite", &llama, &"-o", &out, &"--rank", &"16"]),
        (1, &[&"inspect", &missing]),
        (1, &[&"rewrite", &missing, &"-o", &out]),
        (1, &[&"print", &missing]),
        (1, &[&"diff", &llama, &missing]),
        (1, &[&"validate", &missing, &good]),
        (1, &[&"print", &llama, &"--layer", &"99"]),
        (2, &[]),
        (2, &[&"transmogrify"]),
        (2, &[&"inspect"]),
        (2, &[&"rewrite", &llama]),
        (2, &[&"rewrite", &llama, &"-o", &out, &"--rank", &"0"]),
        (2, &[&"rewrite", &llama, &"-o", &out, &"--rank", &"33"]),
        (2, &[&"rewrite", &llama, &"-o", &out, &"--rank", &"many"]),
        (2, &[&"rewrite", &uneven, &"-o", &out, &"--target", &"gqa"]),
        (2, &[&"validate", &llama, &good, &"--runtime", &"abacus"]),
        (3, &[&"inspect", &latent]),
        (3, &[&"rewrite", &latent, &"-o", &out]),
        (4, &[&"validate", &llama, &wrong]),
        (4, &[&"rewrite", &llama, &"-o", &out, &"--tolerance", &"0"]),
    ];
    for (code, arguments) in cases {
        let quiet: &dyn AsRef<Path> = &"-q";
        let ran = with(&[*arguments, &[quiet][..]].concat());
        let shown: Vec<_> = arguments
            .iter()
            .map(|a| a.as_ref().display().to_string())
            .collect();
        assert_eq!(ran.code, *code, "{}: {ran:?}", shown.join(" "));
        // Whatever fails says so, and whatever succeeds keeps quiet where that is asked for.
        let said = !ran.stderr.is_empty();
        let tells_by_result = match shown.first().map(String::as_str) {
            Some("inspect" | "validate") => *code > 2,
            Some("diff") => !ran.stdout.is_empty(),
            _ => false,
        };
        assert_eq!(
            said,
            *code != 0 && !tells_by_result,
            "{}: {}",
            shown.join(" "),
            ran.stderr
        );
        assert!(
            !ran.stderr.contains('\u{1b}') && !ran.stdout.contains('\u{1b}'),
            "{}: {ran:?}",
            shown.join(" ")
        );
    }
}

/// The examples of the help, in an order in which later ones find what earlier ones wrote.
fn examples() -> Vec<String> {
    let help = with(&[&"--help"]).stdout;
    let listed = help.split_once("Commands:\n").unwrap().1;
    let commands = listed
        .lines()
        .map_while(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '));
    let names: Vec<&str> = commands
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(names.len() >= 5, "{names:?}");
    let mut examples: Vec<String> = names
        .iter()
        .map(|name| {
            let help = with(&[name, &"--help"]).stdout;
            let example = help.split_once("\nExample: ");
            let example =
                example.unwrap_or_else(|| panic!("{name} --help has no example:\n{help}"));
            // A long example goes on in the next line.
            let lines = example.1.lines().take_while(|line| !line.is_empty());
            let example = lines.collect::<Vec<_>>().join(" ");
            assert!(
                example.starts_with(&format!("gqa2mla {name} ")),
                "{example}"
            );
            example
        })
        .collect();
    examples.sort_by_key(|example| !example.starts_with("gqa2mla rewrite "));
    examples
}

#[cfg(unix)]
#[test]
#[ignore = "takes half a minute"]
fn every_example_of_the_help_works_as_it_stands() {
    // Where the repository's fixtures and its ONNX Runtime are, and the outputs land elsewhere.
    let place = folder();
    for part in ["fixtures", ".venv"] {
        std::os::unix::fs::symlink(root().join(part), place.path().join(part)).unwrap();
    }
    // What is trained has lost something, which no other example makes.
    let half = "gqa2mla rewrite fixtures/optimum-llama -o out/half.onnx --cache-ratio 50%";
    for example in std::iter::once(half.to_owned()).chain(examples()) {
        let words = example.split_whitespace().skip(1);
        let ran = Ran::from(
            command()
                .current_dir(place.path())
                .args(words)
                .output()
                .unwrap(),
        );
        assert_eq!(ran.code, 0, "{example}: {ran:?}");
        assert!(!ran.stdout.is_empty(), "{example}");
    }
    assert!(place.path().join("out/model.onnx").is_file());
}

#[test]
fn an_output_that_fails_validation_never_takes_its_name() {
    let place = folder();
    let out = place.path().join("model.onnx");
    let kept = place.path().join("model.onnx.rejected");
    // An exact rewrite rounds otherwise than the original does, so a tolerance of nothing cannot be met.
    let strict = || {
        with(&[
            &"rewrite",
            &fixture("optimum-llama"),
            &"-o",
            &out,
            &"--tolerance",
            &"0",
        ])
    };
    for _ in 0..2 {
        let ran = strict();
        assert_eq!(ran.code, 4, "{ran:?}");
        assert!(!out.exists(), "the rejected model has the output's name");
        assert!(
            ran.stdout.contains("VALIDATION FAILED")
                && ran.stdout.contains("FAILED (largest difference"),
            "{}",
            ran.stdout
        );
        assert!(
            ran.stderr.contains(&format!("kept in {}", kept.display())),
            "{}",
            ran.stderr
        );
        let names: Vec<_> = fs::read_dir(place.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(
            names,
            ["model.onnx.rejected"],
            "a second failure leaves nothing more"
        );
        assert_eq!(
            with(&[&"print", &kept.join("model.onnx")]).code,
            0,
            "what is kept can be looked into"
        );
    }
    // What is there already outlives a failure.
    let written = rewritten(place.path());
    let before = fs::read(&written).unwrap();
    assert_eq!(strict().code, 4);
    assert_eq!(fs::read(&out).unwrap(), before);
}

#[test]
fn a_rewrite_tells_what_it_did_and_what_it_proved() {
    let place = folder();
    let out = place.path().join("sub/folder");
    let ran = with(&[&"rewrite", &fixture("optimum-llama"), &"-o", &out]);
    let written = out.join("model.onnx");
    assert!(written.is_file(), "{ran:?}");
    for part in [
        "2 attentions rewritten (H=8 G=2 d=16), rank 32, target matmul: exact",
        "cache: 512 -> 512 bytes a token (100.0%)",
        "batch of 2, left padding",
        "3 tokens at once",
        "ONNX Runtime 1.",
        "optimizations off: passed",
        "measured cache: 512 -> 512 bytes a token",
        "config.json: num_key_value_heads 2 -> 1",
        &format!("wrote {} in", out.display()),
    ] {
        assert!(ran.stdout.contains(part), "no '{part}' in\n{}", ran.stdout);
    }
    let ran = with(&[
        &"rewrite",
        &fixture("optimum-llama"),
        &"-o",
        &out,
        &"--rank",
        &"8",
    ]);
    for part in [
        "rank 8, target matmul: an approximation",
        "cache: 512 -> 128 bytes a token (25.0%)",
        "predicted loss",
        "differs, as an approximation does",
        "measured cache: 512 -> 128 bytes a token",
    ] {
        assert!(ran.stdout.contains(part), "no '{part}' in\n{}", ran.stdout);
    }
    let ran = with(&[
        &"rewrite",
        &fixture("optimum-llama"),
        &"-o",
        &out,
        &"--no-validate",
    ]);
    assert!(
        ran.stdout.contains("not validated (--no-validate)") && !ran.stdout.contains("passed"),
        "{}",
        ran.stdout
    );
}

#[test]
fn output_that_cannot_be_written_is_a_failure_and_a_reader_that_left_is_none() {
    let full = fs::File::create("/dev/full").unwrap();
    let mut inspect = crate::common::command();
    let output = inspect
        .arg("inspect")
        .arg(fixture("optimum-llama"))
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("writing to standard output: No space left"),
        "{told}"
    );
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = inspect.stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
