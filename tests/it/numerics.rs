//! The meaning of every rewrite: both models are run, and their logits compared. The shape is shown in rewrite.rs.

#[cfg(feature = "tract")]
#[path = "numerics/tract.rs"]
mod tract;

use crate::borrowed_rows::BORROWED;
use crate::common::{
    HALF, IN_BF16, SEEN, SINGLE, compared, exchange_two_heads, fixture, fixtures, folder, grouped,
    in_ort, loaded, pair, recognised_fixtures, rewritten, root, session, with,
};
use crate::shared_caches::SHARED;
use crate::static_caches::STATIC;
use std::collections::BTreeSet;
use std::path::Path;

use crate::shared_caches::WIDTHS;
use gqa2mla::files::load::{LoadedModel, load};
use gqa2mla::runtime::RuntimeKind;
use gqa2mla::validate::ports::LanguageModel;
use gqa2mla::validate::runner::Runner;
use gqa2mla_passes::forms::CachedKeys;
use gqa2mla_passes::onnx::tensor_proto::DataType;
use gqa2mla_passes::pipeline::plan;
use gqa2mla_passes::{
    Absorbed, Analysis, Expanded, Form, Joint, RankPlan, RewriteOptions, inspect,
};

const FLOAT: i32 = DataType::Float as i32;
const FLOAT16: i32 = DataType::Float16 as i32;
const BFLOAT16: i32 = DataType::Bfloat16 as i32;

fn to_rank(rank: usize) -> RewriteOptions<'static> {
    RewriteOptions {
        ranks: RankPlan::Uniform(rank),
        ..RewriteOptions::default()
    }
}

/// The element type of the caches, and the rank at which nothing is lost.
fn measures(name: &str) -> (i32, usize) {
    let sites = inspect(&loaded(name).model).unwrap().sites;
    let full = sites[0].full_rank();
    assert!(
        sites.iter().all(|s| s.full_rank() == full),
        "{name}: layers differ, which this test cannot halve"
    );
    (sites[0].elem_type, full)
}

fn tolerance(name: &str) -> f64 {
    if measures(name).0 == FLOAT {
        SINGLE
    } else {
        HALF
    }
}

fn of_one_width() -> Vec<String> {
    let mut names = recognised_fixtures();
    names.retain(|name| name != WIDTHS);
    names
}

/// Fixtures that ONNX Runtime runs as they are.
/// Those whose layers differ in their widths are in `shared_caches::`.
fn runnable() -> Vec<String> {
    let mut names = of_one_width();
    names.retain(|name| name != IN_BF16);
    names
}

#[test]
fn at_full_rank_nothing_is_lost_in_onnx_runtime() {
    for name in runnable() {
        let (before, after) = pair(&name, RewriteOptions::default());
        let tolerance = tolerance(&name);
        let found =
            compared(&before, &after, in_ort(tolerance)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(
            found.rewritten_runtime.contains("optimizations off"),
            "{}",
            found.rewritten_runtime
        );
        assert!(
            found.passed(),
            "{name}: {:e} is above {tolerance:e}: {found:#?}",
            found.max_ratio()
        );
        // A comparison of nothing would pass as well.
        let cached = found.original_cache_bytes > 0.0;
        let past = found.steps.iter().any(|s| s.past > 0 && s.tokens > 1);
        assert_eq!(
            past, cached,
            "{name}: several tokens on top of a cache belong to every proof: {found:#?}"
        );
        assert!(
            found.steps.iter().any(|s| s.batch > 1),
            "{name}: and so does a batch: {found:#?}"
        );
    }
}

/// Fixtures whose keys cannot be rotated once more: LongRoPE rotates rows of one cache by two tables, Cohere's angles are
/// repeated by `NonZero` and `GatherND`, which are not followed, Qwen2-VL's follow from three positions of a token, and those
/// of the quantized model are products of integers.
const ROTATED_FOR_GOOD: [&str; 5] = [
    "genai-longrope",
    "optimum-cohere",
    "dynamo18-qwen2_vl",
    "dynamo18-llama4",
    "int8-llama",
];

#[test]
fn keys_that_cannot_be_rotated_once_more_are_refused_in_the_expanded_form() {
    for name in ROTATED_FOR_GOOD {
        let options = RewriteOptions {
            form: &Expanded,
            ..RewriteOptions::default()
        };
        let refused = rewritten(&mut loaded(name), options).unwrap_err();
        let told = refused.to_string();
        assert!(told.contains("the rotation of its keys"), "{name}: {told}");
        assert!(told.contains("use the form absorbed"), "{name}: {told}");
    }
}

#[test]
fn the_expanded_form_loses_nothing_at_full_rank_and_halves_the_cache_at_half() {
    exact_at_full_rank_alone(&Expanded);
}

#[test]
fn the_joint_form_loses_nothing_at_full_rank_and_halves_the_cache_at_half() {
    exact_at_full_rank_alone(&Joint);
}

fn exact_at_full_rank_alone(form: &dyn Form) {
    let mut names = runnable();
    // Where several layers read one cache the form is refused, see `shared_caches`, and for static caches too.
    names.retain(|name| {
        !ROTATED_FOR_GOOD.contains(&name.as_str()) && ![SHARED, BORROWED].contains(&name.as_str())
    });
    names.retain(|name| !STATIC.contains(&name.as_str()));
    // A latent of both sides is one of what is cached.
    let caches = |name: &String| inspect(&loaded(name).model).unwrap().sites[0].is_cached();
    names.retain(|name| form.cached_keys() != CachedKeys::WithValues || caches(name));
    for name in names {
        let full = measures(&name).1;
        for (rank, exact) in [(full, true), (full / 2, false)] {
            let options = RewriteOptions {
                form,
                ..to_rank(rank)
            };
            let before = loaded(&name);
            let mut after = loaded(&name);
            let done = rewritten(&mut after, options);
            done.unwrap_or_else(|e| panic!("{name}: {e}"));
            let tolerance = tolerance(&name);
            let found = compared(&before, &after, in_ort(tolerance))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(
                found.passed(),
                exact,
                "{name} at rank {rank}: {:e}",
                found.max_ratio()
            );
            assert!(found.steps.iter().all(|s| s.finite), "{name}");
        }
    }
}

/// A program may take attentions one after another; what it leaves out stays as it is, and both branches of an `If` are one.
#[test]
fn one_attention_alone_can_be_rewritten() {
    for name in ["optimum-llama", "genai-llama", "merged-llama"] {
        for form in [&Absorbed as &dyn Form, &Expanded, &Joint] {
            let before = loaded(name);
            let options = RewriteOptions {
                form,
                ..RewriteOptions::default()
            };
            let analysis = Analysis::of(&before.model, options.form.target()).unwrap();
            let all = plan(&before.model, &analysis, &options).unwrap();
            let options = RewriteOptions {
                only: Some([all[1].id.clone()].into()),
                ..options
            };
            let mut after = loaded(name);
            let done = rewritten(&mut after, options).unwrap();
            assert!(done.sites.iter().all(|s| s.site.layer == 1), "{name}");
            let found = compared(&before, &after, in_ort(SINGLE)).unwrap();
            assert!(found.passed(), "{name}, {form:?}: {:e}", found.max_ratio());
            let caches = |model: &LoadedModel| {
                let inputs = &model.model.proto.graph.as_ref().unwrap().input;
                let caches = inputs.iter().filter(|i| i.name().starts_with("past_key"));
                caches.cloned().collect::<Vec<_>>()
            };
            let (old, new) = (caches(&before), caches(&after));
            let changed = old.iter().zip(&new).filter(|(a, b)| a != b);
            let changed: Vec<&str> = changed.map(|(a, _)| a.name()).collect();
            assert_eq!(changed.len(), 2, "{name}: {changed:?}");
            assert!(
                changed.iter().all(|c| c.contains(".1.")),
                "{name}: {changed:?}"
            );
        }
    }
}

/// TransMLA's layout drops the rotation of most channels, which is nothing at position 0: one token alone comes out right
/// at full width, in the exporters' ways to rotate, and a text does not.
#[test]
fn the_decoupled_form_is_right_where_there_is_nothing_to_rotate() {
    for name in [
        "optimum-llama",
        "dynamo18-llama",
        "dynamo18-glm",
        "dynamo23-llama",
        "optimum-qwen3",
    ] {
        let place = folder();
        let (statistics, out) = (place.path().join("stats"), place.path().join("model.onnx"));
        let ids = root().join("fixtures/tokens.json");
        let ran = with(&[
            &"calibrate",
            &fixture(name),
            &"--token-ids",
            &ids,
            &"--length",
            &"64",
            &"-o",
            &statistics,
        ]);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let ran = with(&[
            &"rewrite",
            &fixture(name),
            &"-o",
            &out,
            &"--cache-ratio",
            &"1",
            &"--factors",
            &"transmla",
            &"--calibration",
            &statistics,
            &"--json",
        ]);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let told = ran.json();
        let ratio = told["validation"]["proof"]["steps"][0]["ratio"]
            .as_f64()
            .unwrap();
        assert!(
            ratio > SEEN,
            "{name}: a text of 8 tokens should differ, {ratio:e}"
        );
        let alone = |path: &Path| {
            let loaded = load(path).unwrap();
            let interface = LanguageModel::of(&loaded.model.proto).unwrap().interface;
            let mut session = session(&loaded.path, RuntimeKind::Ort).unwrap();
            let mut runner = Runner::new(session.as_mut(), &interface).unwrap();
            runner.start(&[0]).unwrap();
            runner.step(&[7], 1).unwrap().to_f32()
        };
        let (before, after) = (alone(&fixture(name)), alone(&out));
        let largest = before.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let apart = before
            .iter()
            .zip(&after)
            .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(
            f64::from(apart / largest) <= SINGLE,
            "{name}: {}",
            apart / largest
        );
    }
}

#[test]
fn the_target_gqa_loses_nothing_at_full_rank_and_halves_the_cache_at_half() {
    for name in fixtures()
        .iter()
        .filter(|n| n.starts_with("genai-") && *n != "genai-gemma2-ring")
    {
        let full = measures(name).1;
        for (rank, exact) in [(full, true), (full / 2, false)] {
            let options = RewriteOptions {
                form: grouped(),
                ..to_rank(rank)
            };
            let (before, after) = pair(name, options);
            let found =
                compared(&before, &after, in_ort(SINGLE)).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(
                found.passed(),
                exact,
                "{name} at rank {rank}: {:e}",
                found.max_ratio()
            );
            let share = found.rewritten_cache_bytes / found.original_cache_bytes;
            assert_eq!(
                share,
                if exact { 1.0 } else { 0.5 },
                "{name} at rank {rank}"
            );
        }
    }
}

#[test]
fn half_the_rank_halves_the_cache_and_is_seen_to_be_an_approximation() {
    let mut names = runnable();
    // Half of it holds all of what DeepSeek's heads are made of: lossless.rs.
    names.retain(|name| name != "dynamo18-deepseek-v3");
    for name in names {
        let full = measures(&name).1;
        let (before, after) = pair(&name, to_rank(full / 2));
        let found =
            compared(&before, &after, in_ort(SINGLE)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(
            found.steps.iter().all(|s| s.finite && s.positions > 0),
            "{name}: {found:#?}"
        );
        // What a token takes at full rank is 2r numbers a layer, of the size that the model caches.
        let sites = inspect(&before.model).unwrap().sites;
        let cached = sites.iter().filter(|s| s.has_own_cache());
        let layers = cached.map(|s| s.layer).collect::<BTreeSet<_>>().len();
        let cached = inspect(&before.model).unwrap().sites[0].cached_type;
        let size = if cached == FLOAT { 4 } else { 2 };
        assert_eq!(
            found.rewritten_cache_bytes,
            (layers * full * size) as f64,
            "{name}"
        );
        let site = &inspect(&before.model).unwrap().sites[0];
        if site.key.size == site.value.size {
            assert_eq!(
                2.0 * found.rewritten_cache_bytes,
                found.original_cache_bytes,
                "{name}"
            );
        }
        // Random weights have no direction to spare, so a rewrite that dropped half of them and did not show it would
        // mean that the comparison does not look at the attention at all.
        assert!(found.max_ratio() > SEEN, "{name}: {:e}", found.max_ratio());
    }
}

#[test]
fn two_exchanged_heads_are_seen() {
    for name in runnable() {
        if inspect(&loaded(&name).model).unwrap().sites[0].kv_heads == 1 {
            let alone = ["dynamo18-llama-mqa", "optimum-falcon"];
            assert!(alone.contains(&name.as_str()), "{name} has several heads");
            continue;
        }
        let (before, mut after) = pair(&name, RewriteOptions::default());
        exchange_two_heads(&mut after);
        let found = compared(&before, &after, in_ort(SINGLE)).unwrap();
        assert!(
            found.max_ratio() >= SEEN && !found.passed(),
            "{name}: {:e}",
            found.max_ratio()
        );
    }
}

#[test]
fn factors_have_the_type_of_what_they_multiply() {
    for name in of_one_width() {
        let elem_type = measures(&name).0;
        let (_, after) = pair(&name, RewriteOptions::default());
        let graph = after.model.proto.graph.as_ref().unwrap();
        let factors = graph
            .initializer
            .iter()
            .filter(|t| t.name().contains("mla/w_"));
        assert!(factors.clone().count() >= 2, "{name}");
        assert!(
            factors.clone().all(|t| t.data_type() == elem_type),
            "{name}"
        );
        let half = [
            ("dynamo18-llama-fp16", FLOAT16),
            ("keep_io-llama", FLOAT16),
            (IN_BF16, BFLOAT16),
        ];
        let half = half.into_iter().find(|(n, _)| *n == name);
        assert_eq!(elem_type, half.map_or(FLOAT, |(_, kind)| kind), "{name}");
    }
}
