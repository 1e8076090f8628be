//! A slice of the fuzzing that runs with the tests: a fixed number of mutants from a fixed seed, and the corpus.
//!
//! `GQA2MLA_FUZZ_MUTANTS` and `GQA2MLA_FUZZ_SEED` run more, or others: docs/fuzzing.md.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gqa2mla_fuzz::attempt::Ending;
use gqa2mla_fuzz::choices::input;
use gqa2mla_fuzz::watch::{Input, survive};
use gqa2mla_fuzz::{Target, choices::Choices};

/// About half a minute for each target on one core.
const MUTANTS: u64 = 6_000;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
    )
}

/// The mutants of a range of seed numbers, and how they ended.
fn slice(target: Target) {
    let first = variable("GQA2MLA_FUZZ_SEED").unwrap_or(0);
    let count = variable("GQA2MLA_FUZZ_MUTANTS").unwrap_or(MUTANTS);
    let seeds = first..first + count;
    let endings = survive(
        target,
        seeds.map(|seed| (format!("seed-{seed}"), input(seed))),
    );
    println!(
        "{}: {count} mutants from seed {first}: {endings:?}",
        target.name()
    );
    // Nothing would be shown if no mutant came far, or every one did.
    let share = |ending| endings.get(&ending).copied().unwrap_or(0) * 100 / count as usize;
    for ending in [
        Ending::NotLoaded,
        Ending::NotWellFormed,
        Ending::Refused,
        Ending::Rewritten,
    ] {
        assert!(
            count < 1_000 || share(ending) >= 1,
            "{ending:?} is rare: {endings:?}"
        );
    }
}

#[test]
fn mutants_of_the_encoding_never_panic_hang_or_fill_the_memory() {
    slice(Target::Bytes);
}

#[test]
fn mutants_of_the_messages_never_panic_hang_or_fill_the_memory() {
    slice(Target::Graph);
}

/// Inputs of corpus/TARGET: some of each kind, and every one that was ever a finding.
#[test]
fn the_corpus_never_panics_hangs_or_fills_the_memory() {
    for target in [Target::Bytes, Target::Graph] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target.name());
        let mut inputs: Vec<Input> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (format!("corpus-{name}"), fs::read(path).unwrap())
            })
            .collect();
        inputs.sort();
        let count = inputs.len();
        let endings: BTreeMap<Ending, usize> = survive(target, inputs.into_iter());
        assert!(
            count >= 12 && endings.len() == 4,
            "{count} inputs: {endings:?}"
        );
    }
}

#[test]
fn an_input_decides_everything() {
    let decisions = |input: &[u8]| {
        let mut choices = Choices::new(input);
        (0..200).map(|_| choices.below(1000)).collect::<Vec<_>>()
    };
    assert_eq!(decisions(&input(7)), decisions(&input(7)));
    assert_ne!(decisions(&input(7)), decisions(&input(8)));
}
