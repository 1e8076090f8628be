//! Caches of integers, and prompts that the exporter's graph reads: the shape of the rewrites.

use super::*;
use gqa2mla_passes::factor::rounding::{CacheBits, Levels, Rounding};
use gqa2mla_passes::forms::{
    AbsorbedPrompt, GROUPED_PROMPT, KEPT_PROMPT, REBASED_PROMPT, RebasedHeads,
};
use ndarray::Array1;

/// The names of the snapshots of this file.
pub fn snapshots() -> Vec<String> {
    let rounded = ROUNDED
        .iter()
        .map(|(name, .., bits)| rounded_name(name, *bits));
    let prompts = PROMPT
        .iter()
        .map(|(name, .., bits)| prompt_name(name, *bits));
    rounded.chain(prompts).collect()
}

/// The same of a cache of integers, with a latent of half of the heads' numbers or of all of them.
fn rounded_report(name: &str, form: &dyn Form, ranks: RankPlan, bits: CacheBits) -> String {
    let mut model = loaded(name);
    let options = RewriteOptions {
        form,
        ranks,
        bits,
        ..RewriteOptions::default()
    };
    let mut alike = |view: &SiteView, wanted: Wanted| {
        let bits = CacheBits::Model;
        let made = by_weights(view, Wanted { bits, ..wanted })?;
        if wanted.bits == CacheBits::Model {
            return Ok(made);
        }
        let centred = form.rounds().has_centres();
        let heads = form.cached_heads(view.site());
        let levels = |rank: usize| Levels {
            scale: Array1::from_elem(heads * wanted.bits.channels(rank / heads), 0.125),
            centre: centred.then(|| Array1::ones(rank)),
            second_digits: wanted.bits.second_digits(rank / heads),
        };
        let rounding = Rounding {
            bits: wanted.bits,
            heads,
            key: levels(wanted.ranks.key),
            value: levels(wanted.ranks.value),
        };
        let factors = made.latent()?.clone();
        let factors = factors.giving_back(&rounding.value, view.site().heads);
        Ok(Made::Rounded(factors, rounding.into()))
    };
    let done = rewritten_with(&mut model, options, &mut alike);
    done.unwrap().explain()
}

/// Integers: without a product on the way down, with one, in half precision, cast on the way to the interface, and read by
/// the operator with and without a latent.
const ROUNDED: [(&str, &dyn Form, RankPlan, CacheBits); 11] = [
    ("optimum-llama", &Absorbed, RankPlan::Full, CacheBits::Eight),
    (
        "dynamo23-llama-gqa",
        &Absorbed,
        RankPlan::Uniform(16),
        CacheBits::Eight,
    ),
    (
        "dynamo18-llama-fp16",
        &Absorbed,
        RankPlan::Full,
        CacheBits::Eight,
    ),
    ("keep_io-llama", &Absorbed, RankPlan::Full, CacheBits::Eight),
    (
        "genai-llama",
        &GroupedQuery,
        RankPlan::Uniform(16),
        CacheBits::Eight,
    ),
    ("genai-qwen2", &KeptHeads, RankPlan::Full, CacheBits::Eight),
    (
        "genai-llama",
        &GroupedQuery,
        RankPlan::Uniform(16),
        CacheBits::Four,
    ),
    (
        "genai-qwen2",
        &RebasedHeads,
        RankPlan::Full,
        CacheBits::Four,
    ),
    ("genai-llama", &GroupedQuery, RankPlan::Full, CacheBits::Six),
    (
        "dynamo23-llama",
        &Expanded,
        RankPlan::Uniform(16),
        CacheBits::Eight,
    ),
    (
        "genai-phi3",
        &Joint,
        RankPlan::Uniform(16),
        CacheBits::Eight,
    ),
];

fn rounded_name(name: &str, bits: CacheBits) -> String {
    format!("{name}.int{}", bits.number().unwrap())
}

#[test]
fn caches_of_integers_are_as_their_snapshots_say() {
    for (name, form, ranks, bits) in ROUNDED {
        let report = rounded_report(name, form, ranks, bits);
        snapshot(&rounded_name(name, bits), &report);
    }
}

/// Exact prompts: by the exporter's operator, into latents, latents of packed integers, and integers of its own heads; by
/// products, into integers, and in a merged decoder.
const PROMPT: [(&str, &dyn Form, RankPlan, CacheBits); 6] = [
    (
        "genai-llama",
        &GROUPED_PROMPT,
        RankPlan::Uniform(16),
        CacheBits::Model,
    ),
    (
        "genai-llama",
        &GROUPED_PROMPT,
        RankPlan::Uniform(16),
        CacheBits::Four,
    ),
    (
        "genai-qwen2",
        &KEPT_PROMPT,
        RankPlan::Full,
        CacheBits::Eight,
    ),
    (
        "genai-qwen3",
        &REBASED_PROMPT,
        RankPlan::Full,
        CacheBits::Six,
    ),
    (
        "optimum-llama",
        &AbsorbedPrompt,
        RankPlan::Full,
        CacheBits::Eight,
    ),
    (
        "merged-llama",
        &AbsorbedPrompt,
        RankPlan::Uniform(16),
        CacheBits::Model,
    ),
];

fn prompt_name(name: &str, bits: CacheBits) -> String {
    format!("{name}.prompt{}", bits.number().unwrap_or(16))
}

#[test]
fn prompts_that_the_operator_reads_are_as_their_snapshots_say() {
    for (name, form, ranks, bits) in PROMPT {
        let report = rounded_report(name, form, ranks, bits);
        snapshot(&prompt_name(name, bits), &report);
    }
}
