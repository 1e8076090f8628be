//! Data flows one way: a module uses the ones before it, never the ones after it.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of `passes/src`, each row using only rows above it and itself.
const PASSES: [&[&str]; 9] = [
    &["onnx"],
    &["graph"],
    &["facts"],
    &["recognize", "factor"],
    &["weights"],
    &["operators"],
    &["analysis"],
    &["forms"],
    &["pipeline"],
];

/// The rooms of `src`.
const SHELL: [&[&str]; 8] = [
    &["files", "runtime"],
    &["validate"],
    &["measure"],
    &["fit", "tune"],
    &["compress"],
    &["serving"],
    &["report"],
    &["cli"],
];

#[test]
fn passes_use_only_what_comes_before_them() {
    check(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("passes/src"),
        &PASSES,
        "crate::",
    );
}

#[test]
fn the_shell_uses_only_what_comes_before_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    check(&root, &SHELL, "crate::");
    check(&root, &SHELL, "gqa2mla::");
}

fn check(root: &Path, layers: &[&[&str]], prefix: &str) {
    let row = |module: &str| layers.iter().position(|row| row.contains(&module));
    let mut seen = 0;
    for path in sources(root) {
        let relative = path.strip_prefix(root).unwrap();
        let first = relative.iter().next().unwrap().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if matches!(module, "lib" | "main") {
            continue;
        }
        let own = row(module).unwrap_or_else(|| panic!("{module} has no place among the layers"));
        for used in used(&fs::read_to_string(&path).unwrap(), prefix) {
            let Some(other) = row(&used) else { continue };
            seen += 1;
            assert!(
                other < own || used == module,
                "{}: {module} uses {used}, which comes after it or beside it",
                relative.display()
            );
        }
    }
    assert!(
        seen > 0 || prefix != "crate::",
        "no use of one module by another was found"
    );
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// The first segments of all paths that begin with `prefix`.
fn used(text: &str, prefix: &str) -> Vec<String> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| {
            line.match_indices(prefix)
                .map(move |(at, _)| &line[at + prefix.len()..])
        })
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        })
        .collect()
}
