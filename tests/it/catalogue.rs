//! The catalogue of reasons in docs/reasons.md has a row for every reason that the code gives, and for no other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn the_catalogue_lists_every_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = fs::read_to_string(root.join("passes/src/recognize/reject/catalogue.rs")).unwrap();
    let (_, codes) = source.split_once("pub fn code(").unwrap();
    let (codes, _) = codes.split_once("\n    }\n").unwrap();
    let given: BTreeSet<&str> = codes.split('"').skip(1).step_by(2).collect();
    assert!(given.len() > 20, "{given:?}");
    let page = fs::read_to_string(root.join("docs/reasons.md")).unwrap();
    let (_, table) = page.split_once("| reason | what it means |").unwrap();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let listed: BTreeSet<&str> = rows
        .filter_map(|row| row.trim_start_matches("| ").split(" |").next())
        .flat_map(|codes| codes.split(", "))
        .collect();
    assert_eq!(listed, given);
}
