//! Fuzzing of `gqa2mla`: broken models are read, inspected and rewritten.
//!
//! One input is a short string of bytes, which [`choices::Choices`] turns into decisions: which fixture, which changes,
//! which options of the rewrite. The same inputs drive `cargo test` (tests/slice.rs makes them from seed numbers),
//! the committed corpus (corpus/TARGET/) and libFuzzer (libfuzzer/, which needs a nightly toolchain).
//!
//! What must hold for every input: no panic, no internal error, an end within [`watch::PATIENCE`], and a peak of memory
//! below [`watch::LARGEST_RESIDENT`]. docs/fuzzing.md tells how to run it for long, and the last results.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod attempt;
pub mod bytes;
pub mod choices;
pub mod graph;
pub mod seeds;
pub mod watch;

use attempt::Ending;
use choices::Choices;
use seeds::Seeds;

/// What is mutated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The protobuf encoding of a model, outside its weights.
    Bytes,
    /// The decoded messages: nodes, attributes, initializers, inputs and outputs.
    Graph,
}

impl Target {
    /// The name of the corpus folder and of the libFuzzer target.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Graph => "graph",
        }
    }

    /// Makes the mutant that `input` describes, and reads, inspects and rewrites it.
    ///
    /// # Panics
    /// Where the library panics, or reports an internal error.
    pub fn run(self, seeds: &Seeds, input: &[u8]) -> Ending {
        let mut choices = Choices::new(input);
        let seed = seeds.choose(&mut choices);
        let mutant = match self {
            Self::Bytes => bytes::mutant(seed, &mut choices),
            Self::Graph => graph::mutant(seed, &mut choices),
        };
        attempt::attempt(&seed.place, &mutant, &mut choices)
    }
}
