//! The catalogue of reasons in docs/reasons.md has a row for every reason that the code gives, and for no other.

#[path = "catalogue/causes.rs"]
mod causes;
mod changes;

use std::collections::BTreeSet;
use std::fs;

use crate::common::{loaded, root};
use crate::noticed::VARIANTS;
use crate::refuse::cases::CASES;
use causes::{CAUSES, Cause};
use gqa2mla_passes::inspect;

/// Reasons that other tests give two graphs or more, with the modules that do.
const ELSEWHERE: [(&str, &str); 4] = [
    (
        "cross-attention",
        "the fixtures of Whisper and T5Gemma, below",
    ),
    ("other-branch", "scopes::half_an_if, in either branch"),
    ("other-form", "partial::, two forms"),
    (
        "already-latent",
        "noticed::what_a_rewrite_has_made, three dialects",
    ),
];

/// The code of every reason that the library gives.
fn codes() -> BTreeSet<String> {
    let catalogue = root().join("passes/src/recognize/reject/catalogue.rs");
    let source = fs::read_to_string(catalogue).unwrap();
    let (_, codes) = source.split_once("pub fn code(").unwrap();
    let (codes, _) = codes.split_once("\n    }\n").unwrap();
    let given: BTreeSet<String> = codes
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    assert!(given.len() > 20, "{given:?}");
    given
}

#[test]
fn every_reason_is_caused_by_two_different_graphs() {
    let tried: Vec<&str> = CASES
        .iter()
        .map(|case| case.1)
        .chain(VARIANTS.iter().map(|variant| variant.1))
        .chain(CAUSES.iter().map(|cause| cause.2))
        .collect();
    for code in codes() {
        let count = tried.iter().filter(|tried| **tried == code).count();
        let elsewhere = ELSEWHERE.iter().any(|(known, _)| *known == code);
        assert!(count >= 2 || elsewhere, "{code} is tried {count} times");
    }
}

/// What a reader of the message alone misses in what becomes of `cause`: the reason, the node, what was found and expected
/// there, a way out.
fn missed((name, change, code, parts): &Cause) -> Option<String> {
    let mut model = loaded(name);
    let site = inspect(&model.model).unwrap().sites.swap_remove(0);
    change(model.model.proto.graph.as_mut().unwrap(), &site);
    let found = match inspect(&model.model) {
        Ok(found) => found,
        Err(error) => return Some(format!("{name}, {code}: {error}")),
    };
    let Some(first) = found.rejects.first() else {
        return Some(format!("{name}, {code}: nothing is refused"));
    };
    let told = first.to_string();
    let nodes = &model.model.proto.graph.as_ref().unwrap().node;
    let is_named = nodes
        .iter()
        .any(|n| n.name() == first.node || n.output.contains(&first.node));
    let holds = first.reason.code() == *code
        && parts.iter().all(|part| told.contains(part))
        && is_named
        && first.reason.advice().len() > 20;
    (!holds).then(|| format!("{name}, {code}, with {parts:?}: {told}"))
}

#[test]
fn every_cause_is_told_with_its_node_and_a_way_out() {
    let missed: Vec<String> = CAUSES.iter().filter_map(missed).collect();
    assert!(missed.is_empty(), "{missed:#?}");
}

/// Attention to another sequence is told as no site, and is in nobody's way.
#[test]
fn cross_attention_is_told_and_is_no_obstacle() {
    for name in ["optimum-whisper", "dynamo18-t5gemma"] {
        let found = inspect(&loaded(name).model).unwrap();
        assert!(found.rejects.is_empty(), "{name}: {:?}", found.rejects);
        assert!(!found.others.is_empty(), "{name}");
        for other in &found.others {
            assert_eq!(other.reason.code(), "cross-attention", "{name}: {other}");
            let told = other.to_string();
            assert!(
                told.contains("another length than the query"),
                "{name}: {told}"
            );
        }
    }
}

#[test]
fn the_catalogue_lists_every_reason() {
    let given = codes();
    let page = fs::read_to_string(root().join("docs/reasons.md")).unwrap();
    let (_, table) = page.split_once("| reason | what it means |").unwrap();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let listed: BTreeSet<String> = rows
        .filter_map(|row| row.trim_start_matches("| ").split(" |").next())
        .flat_map(|codes| codes.split(", "))
        .map(str::to_owned)
        .collect();
    assert_eq!(listed, given);
}
