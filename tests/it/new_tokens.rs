//! `--new-tokens exact`: the past is latent, and the new tokens of a step are what they are.

use std::path::Path;

use gqa2mla_passes::forms::{AbsorbedPrompt, GROUPED_PROMPT};
use gqa2mla_passes::{LatentPast, RankPlan, RewriteOptions, inspect};

use crate::common::{
    HALF, IN_BF16, SEEN, SINGLE, compared, fixture, folder, in_ort, loaded, pair, proved,
    recognised_fixtures, root, with,
};
use crate::static_caches::STATIC;

/// ONNX's number of fp32.
const FLOAT: i32 = 1;

/// The fixtures that ONNX Runtime runs as they are, with the tolerance of their type and the rank at which nothing is lost.
fn runnable() -> Vec<(String, f64, usize)> {
    let mut names = recognised_fixtures();
    names.retain(|name| name != IN_BF16);
    // A step cannot be told from the rows of a static cache.
    names.retain(|name| !STATIC.contains(&name.as_str()));
    let of = |name: String| {
        let site = inspect(&loaded(&name).model).unwrap().sites.remove(0);
        let tolerance = if site.elem_type == FLOAT {
            SINGLE
        } else {
            HALF
        };
        (name, tolerance, site.key.rank.max(site.value.rank))
    };
    names.into_iter().map(of).collect()
}

fn options(ranks: RankPlan) -> RewriteOptions<'static> {
    RewriteOptions {
        form: &LatentPast,
        ranks,
        ..RewriteOptions::default()
    }
}

#[test]
fn at_full_rank_nothing_is_lost() {
    for (name, tolerance, _) in runnable() {
        let (before, after) = pair(&name, options(RankPlan::Full));
        let found = proved(&name, (&before, &after), tolerance);
        // Several tokens on a past are the case in which both parts have more than one row.
        let cached = found.original_cache_bytes > 0.0;
        let both = found.steps.iter().any(|s| s.past > 0 && s.tokens > 1);
        assert_eq!(both, cached, "{name}: {found:#?}");
    }
}

/// What is read on an empty cache has no past. Later steps read it as latents, whose cache is half as large.
#[test]
fn at_half_the_rank_a_prefill_loses_nothing_and_later_steps_do() {
    for (name, tolerance, full) in runnable() {
        let (before, after) = pair(&name, options(RankPlan::Uniform(full / 2)));
        let found =
            compared(&before, &after, in_ort(tolerance)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let ratios = |later: bool| {
            let steps = found.steps.iter().filter(move |s| (s.past > 0) == later);
            steps.map(|s| s.ratio)
        };
        assert!(ratios(false).all(|r| r <= tolerance), "{name}: {found:#?}");
        if found.original_cache_bytes > 0.0 {
            assert!(ratios(true).all(|r| r > SEEN), "{name}: {found:#?}");
            assert!(
                found.rewritten_cache_bytes < found.original_cache_bytes,
                "{name}"
            );
        }
    }
}

/// A prompt is read as it is, in every dialect; later steps read latents, as the absorbed form does.
#[test]
fn a_prompt_is_exact_and_later_steps_are_those_of_the_absorbed_form() {
    for (name, tolerance, full) in runnable() {
        let options = |form, ranks| RewriteOptions {
            form,
            ranks,
            ..RewriteOptions::default()
        };
        let (before, after) = pair(&name, options(&AbsorbedPrompt, RankPlan::Full));
        proved(&name, (&before, &after), tolerance);
        let half = RankPlan::Uniform(full / 2);
        let (before, after) = pair(&name, options(&AbsorbedPrompt, half.clone()));
        let found =
            compared(&before, &after, in_ort(tolerance)).unwrap_or_else(|e| panic!("{name}: {e}"));
        for step in &found.steps {
            assert_eq!(step.past == 0, step.ratio <= tolerance, "{name}: {step:?}");
        }
    }
}

/// With GroupQueryAttention, the exporter's own operator reads the prompt, and latents are read later.
#[test]
fn the_operator_reads_a_prompt_as_it_is_and_latents_later() {
    for name in ["genai-gemma2", "genai-llama", "genai-qwen3", "genai-gptoss"] {
        let options = |ranks| RewriteOptions {
            form: &GROUPED_PROMPT,
            ranks,
            ..RewriteOptions::default()
        };
        let (before, after) = pair(name, options(RankPlan::Full));
        proved(name, (&before, &after), SINGLE);
        let full = inspect(&loaded(name).model).unwrap().sites.remove(0);
        let (before, after) = pair(name, options(RankPlan::Uniform(full.full_rank() / 2)));
        let found = compared(&before, &after, in_ort(SINGLE)).unwrap();
        for step in &found.steps {
            assert_eq!(step.past == 0, step.ratio <= SINGLE, "{name}: {step:?}");
        }
        assert!(found.steps.iter().any(|s| s.past > 0), "{name}");
    }
}

/// The mean that calibrated latents leave out comes back for the past alone: with it a prefill would not be exact.
#[test]
fn a_calibrated_model_is_measured_through_its_cache() {
    let place = folder();
    let ids = root().join("fixtures/tokens.json");
    let rewritten = |new_tokens: &str| {
        let out = place.path().join(format!("{new_tokens}.onnx"));
        let ran = with(&[
            &"rewrite",
            &fixture("optimum-llama"),
            &"-o",
            &out,
            &"--cache-ratio",
            &"0.5",
            &"--new-tokens",
            &new_tokens,
            &"--token-ids",
            &ids,
            &"--length",
            &"64",
            &"--reconstruct",
            &"0",
            &"--json",
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
        (out, ran.json())
    };
    let (exact, told) = rewritten("exact");
    let steps = told["validation"]["proof"]["steps"].as_array().unwrap();
    let ratio = |step: &serde_json::Value| step["ratio"].as_f64().unwrap();
    assert!(ratio(&steps[0]) <= SINGLE, "{:?}", steps[0]);
    assert!(ratio(&steps[1]) > SEEN, "{:?}", steps[1]);

    let (latent, _) = rewritten("latent");
    let measured = |model: &Path| {
        let original = fixture("optimum-llama");
        let arguments: [&dyn AsRef<Path>; 9] = [
            &"validate",
            &original,
            &model,
            &"--token-ids",
            &ids,
            &"--length",
            &"64",
            &"--test-tokens",
            &"512",
        ];
        let text = with(&arguments);
        assert_eq!(text.code, 0, "{text:?}");
        let json = with(&[&arguments[..], &[&"--json"]].concat()).json();
        (text.stdout, json)
    };
    let (by_steps, by_chunks) = (measured(&exact), measured(&latent));
    assert!(by_steps.0.contains("read token by token"), "{}", by_steps.0);
    assert!(
        by_chunks.0.contains("read 256 at a time"),
        "{}",
        by_chunks.0
    );
    assert_eq!(by_steps.1["quality"]["tokens_at_once"], 1);
    assert_eq!(by_chunks.1["quality"]["tokens_at_once"], 256);
    // Layer errors are those of a prompt that is read at once, in which this model loses nothing.
    assert_eq!(by_steps.1["layers"], serde_json::json!([]));
    assert!(!by_steps.0.contains("predicted"), "{}", by_steps.0);
    assert!(by_chunks.0.contains("predicted"), "{}", by_chunks.0);
    // The factors are the same, and only a token's own key and value are not: what is lost is of the same size.
    let kl = |json: &serde_json::Value| json["quality"]["mean_kl"].as_f64().unwrap();
    let (exact, latent) = (kl(&by_steps.1), kl(&by_chunks.1));
    assert!(
        0.3 * latent < exact && exact < 1.5 * latent,
        "{exact:e} {latent:e}"
    );
}

#[test]
fn what_has_no_exact_new_tokens_is_refused_with_the_way_out() {
    let place = folder();
    let out = place.path().join("model.onnx");
    let genai = fixture("genai-llama");
    let with_option = |more: [&'static str; 2]| {
        with(&[
            &"rewrite",
            &genai,
            &"-o",
            &out,
            &"--new-tokens",
            &"exact",
            &more[0],
            &more[1],
        ])
    };
    for more in [["--form", "expanded"], ["--factors", "transmla"]] {
        let ran = with_option(more);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains("the form absorbed"), "{}", ran.stderr);
        assert!(!out.exists());
    }
}
