//! `Target::Bytes` under libFuzzer.
#![no_main]

use std::sync::LazyLock;

use gqa2mla_fuzz::Target;
use gqa2mla_fuzz::seeds::Seeds;
use libfuzzer_sys::fuzz_target;

static SEEDS: LazyLock<Seeds> = LazyLock::new(Seeds::read);

fuzz_target!(|input: &[u8]| {
    Target::Bytes.run(&SEEDS, input);
});
