//! Caches that several attentions read: the last layers of Gemma 3n reuse the keys and values of earlier ones.

use gqa2mla::files::load::LoadedModel;
use gqa2mla::fit::calibrate::{Analyzed, calibrate};
use gqa2mla::measure::text::{Text, TextSource};
use gqa2mla::runtime::{RuntimeKind, RuntimeOptions};
use gqa2mla_passes::analysis::{Analysis, SiteView};
use gqa2mla_passes::factor::Made;
use gqa2mla_passes::forms::Join;
use gqa2mla_passes::graph::build::node;
use gqa2mla_passes::onnx::NodeProto;
use gqa2mla_passes::operators::Target;
use gqa2mla_passes::pipeline::factorize::Wanted;
use gqa2mla_passes::{Expanded, RankPlan, RewriteOptions, by_weights, inspect};
use ndarray::Array2;
use serde_json::json;

use crate::common::{
    SINGLE, fixture, folder, loaded, pair, proved, rewritten, rewritten_with, root, with,
};

/// Four layers, of which 2 reads the cache of 0 and 3 that of 1.
pub const SHARED: &str = "dynamo18-gemma3n";
/// A model whose layers also differ in the width of their heads.
pub const WIDTHS: &str = "dynamo18-gemma4";

fn nodes(model: &mut LoadedModel) -> &mut Vec<NodeProto> {
    &mut model.model.proto.graph.as_mut().unwrap().node
}

/// The fixture, whose logits also depend on the sum of `value`.
fn with_reader_of(value: &str) -> LoadedModel {
    let mut model = loaded(SHARED);
    let all = nodes(&mut model);
    let logits = all.iter_mut().find(|n| n.output == ["logits"]).unwrap();
    logits.output = vec!["logits_before".to_owned()];
    all.extend([
        node("ReduceSum", "cache_total", &[value], &["total"]).with_int("keepdims", 0),
        node("Tanh", "cache_bent", &["total"], &["bent"]),
        node("Add", "last", &["logits_before", "bent"], &["logits"]),
    ]);
    model
}

#[test]
fn each_reader_is_an_attention_and_its_cache_counts_once() {
    let found = inspect(&loaded(SHARED).model).unwrap();
    let shares: Vec<_> = found.sites.iter().map(|site| site.shares).collect();
    assert_eq!(shares, [None, None, Some(0), Some(1)]);
    let told = with(&[&"inspect", &fixture(SHARED), &"--json"]).json();
    assert_eq!(told["recognised"], json!(4));
    assert_eq!(told["cache_bytes_per_token"], json!(512));
    let place = folder();
    let out = place.path().join("out.onnx");
    let ran = with(&[&"rewrite", &fixture(SHARED), &"-o", &out, &"--json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let told = ran.json();
    assert_eq!(told["rewrite"]["rewritten"], json!(4));
    assert_eq!(told["rewrite"]["cache_bytes_per_token_before"], json!(512));
    assert_eq!(
        told["validation"]["proof"]["original_cache_bytes"],
        json!(512.0)
    );
    let ran = with(&[&"rewrite", &fixture(SHARED), &"-o", &out, &"--dry-run"]);
    assert!(ran.stdout.contains("4 attentions"), "{ran:?}");
    assert!(!ran.stdout.contains("would stay"), "{ran:?}");
}

/// The exporter repeats the heads of a cache once for all its readers; others repeat them for each.
#[test]
fn each_reader_may_repeat_the_heads_of_its_cache_by_itself() {
    let apart = || {
        let mut model = loaded(SHARED);
        let found = inspect(&model.model).unwrap();
        let [first, other] = [0, 2].map(|at| &found.sites[at]);
        assert_eq!(first.key.path, other.key.path, "shared in the fixture");
        let path = &other.key.path;
        let all = nodes(&mut model);
        let product = other.score.0;
        let mut copies: Vec<NodeProto> = all
            .iter()
            .filter(|n| path[1..].contains(&n.output[0]))
            .cloned()
            .collect();
        let renamed = |name: &String| format!("{name}_again");
        for node in copies.iter_mut().chain([&mut all[product]]) {
            let own = node.output.iter_mut().filter(|o| path.contains(o));
            let read = node.input.iter_mut().filter(|i| path[1..].contains(i));
            own.chain(read).for_each(|value| *value = renamed(value));
            node.name = Some(renamed(&node.name().to_owned()));
        }
        all.splice(product..product, copies);
        model
    };
    let (before, mut after) = (apart(), apart());
    assert_eq!(
        rewritten(&mut after, RewriteOptions::default())
            .unwrap()
            .sites
            .len(),
        4
    );
    proved(SHARED, (&before, &after), SINGLE);
}

/// Of the repeated heads too, which the second reader may make for itself.
#[test]
fn a_reader_that_is_no_attention_keeps_all_attentions_of_its_cache() {
    for value in [
        "present.0.key",
        "present.0.value",
        "past_key_values.0.key",
        "_unsafe_view_1",
    ] {
        let model = with_reader_of(value);
        let found = inspect(&model.model).unwrap();
        let layers: Vec<usize> = found.rejects.iter().map(|r| r.layer).collect();
        assert_eq!(layers, [0, 2], "{value}: {:?}", found.rejects);
        for reject in &found.rejects {
            assert_eq!(reject.reason.code(), "second-reader", "{value}: {reject}");
            let told = reject.to_string();
            assert!(told.contains("ReduceSum 'cache_total'"), "{value}: {told}");
        }
        let mut after = with_reader_of(value);
        let partial = RewriteOptions {
            allow_partial: true,
            ..RewriteOptions::default()
        };
        assert_eq!(rewritten(&mut after, partial).unwrap().sites.len(), 2);
        proved(value, (&model, &after), SINGLE);
    }
}

/// Layer 2 with the keys of layer 0 and the values of layer 1: no one latent has both.
#[test]
fn attentions_that_read_one_cache_of_two_are_refused_with_each_other() {
    let mut model = loaded(SHARED);
    let found = inspect(&model.model).unwrap();
    let [second, third] = [2, 3].map(|at| found.sites[at].output.0);
    let all = nodes(&mut model);
    let values = [second, third].map(|at| all[at].input[1].clone());
    all[second].input[1].clone_from(&values[1]);
    all[third].input[1].clone_from(&values[0]);
    let found = inspect(&model.model).unwrap();
    let codes: Vec<_> = found.rejects.iter().map(|r| r.reason.code()).collect();
    assert_eq!(codes, ["shared-cache"; 4], "{:?}", found.rejects);
    let told = found.rejects[0].to_string();
    assert!(told.contains("also serves layer 2"), "{told}");
}

#[test]
fn a_form_that_rebuilds_keys_is_refused_with_the_way_out() {
    let options = RewriteOptions {
        form: &Expanded,
        ..RewriteOptions::default()
    };
    let told = rewritten(&mut loaded(SHARED), options)
        .unwrap_err()
        .to_string();
    assert!(told.contains("layer 2 reads its cache too"), "{told}");
    assert!(told.contains("use the form absorbed"), "{told}");
}

#[test]
fn a_shared_cache_is_written_in_place_as_others_are() {
    let options = RewriteOptions {
        join: Join::InPlace,
        ..RewriteOptions::default()
    };
    let (before, after) = pair(SHARED, options);
    proved(SHARED, (&before, &after), SINGLE);
}

/// In Gemma 4, layers differ in the width of their heads, and later ones read the caches of earlier ones.
#[test]
fn caches_of_two_widths_keep_them_and_are_halved_each() {
    let (before, after) = pair(WIDTHS, RewriteOptions::default());
    proved(WIDTHS, (&before, &after), SINGLE);
    let place = folder();
    for (ratio, ranks, bytes) in [
        ("1", "ranks 32 to 64", "768 -> 768"),
        ("50%", "ranks 16 to 32", "768 -> 384"),
    ] {
        let out = place
            .path()
            .join(format!("{}.onnx", bytes.len() + ratio.len()));
        let ran = with(&[
            &"rewrite",
            &fixture(WIDTHS),
            &"-o",
            &out,
            &"--cache-ratio",
            &ratio,
        ]);
        assert_eq!(ran.code, 0, "{ran:?}");
        for told in ["H=4 G=2 d=16 to 32", ranks, bytes] {
            assert!(ran.stdout.contains(told), "no '{told}' in {}", ran.stdout);
        }
    }
}

/// Errors of keys weigh as much as all queries that meet them, and those of values as much as all readers take.
#[test]
fn statistics_of_a_cache_are_those_of_all_its_readers() {
    let model = loaded(SHARED);
    let analysis = Analysis::of(&model.model, Target::MatMul).unwrap();
    let ids = root().join("fixtures/tokens.json");
    let text = Text::read(&TextSource::Ids(ids), 128, 128, 64).unwrap();
    let runtime = RuntimeOptions {
        runtime: RuntimeKind::Ort,
        threads: 1,
        ..RuntimeOptions::default()
    };
    let of = |analysis: &Analysis| {
        let subject = Analyzed {
            model: &model,
            analysis,
        };
        let sums = calibrate(subject, &text, &runtime, None, &mut |_, _| {}).unwrap();
        sums.layers.into_values().next().unwrap()
    };
    let all = of(&analysis);
    let alone = [0, 2].map(|layer| {
        let mut one = analysis.clone();
        one.sites.retain(|placed| placed.site.layer == layer);
        one.sites.iter_mut().for_each(|placed| placed.reader = 0);
        of(&one)
    });
    assert_eq!(all.received.len(), 8);
    for group in 0..2 {
        let sum = &alone[0].query_square[group] + &alone[1].query_square[group];
        let off = (&all.query_square[group] - &sum).mapv(f64::abs);
        // Both are sums of the same numbers in f64.
        assert!(off.iter().all(|x| *x < 1e-6), "{off}");
    }
    // Two heads of each group stand before those of the other group: first the first reader's.
    let of_heads = |heads: [usize; 2], of: &gqa2mla_passes::factor::Statistics| {
        heads.map(|head| of.received_value.row(head).to_owned())
    };
    assert_eq!(of_heads([0, 1], &all), of_heads([0, 1], &alone[0]));
    assert_eq!(of_heads([2, 3], &all), of_heads([0, 1], &alone[1]));
    assert_eq!(of_heads([4, 5], &all), of_heads([2, 3], &alone[0]));
    assert_eq!(of_heads([6, 7], &all), of_heads([2, 3], &alone[1]));
    assert_eq!(all.key_square, alone[0].key_square);
}

/// The bias of all heads that read a cache, which stand as in its statistics, comes apart into those of its readers.
#[test]
fn each_reader_has_the_bias_of_its_own_heads() {
    let mut model = loaded(SHARED);
    let mut numbered = |view: &SiteView, wanted: Wanted| {
        let mut made = by_weights(view, wanted)?;
        if let Made::Latent(factors) = &mut made {
            let bias = Array2::from_shape_fn((8, 16), |(head, _)| head as f64);
            factors.bias = Some(bias);
        }
        Ok(made)
    };
    let half = RewriteOptions {
        ranks: RankPlan::Uniform(16),
        ..RewriteOptions::default()
    };
    rewritten_with(&mut model, half, &mut numbered).unwrap();
    let graph = model.model.proto.graph.unwrap();
    let named = |end: &str| -> Vec<_> {
        let tensors = graph.initializer.iter();
        tensors.filter(|t| t.name().ends_with(end)).collect()
    };
    let heads = named("/b_v").into_iter().map(|tensor| {
        let floats = tensor.raw_data.as_ref().unwrap().chunks(4 * 16);
        let first = floats.map(|head| f32::from_le_bytes(head[..4].try_into().unwrap()));
        first.collect::<Vec<_>>()
    });
    let (first, other) = ([0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]);
    assert_eq!(heads.collect::<Vec<_>>(), [first, first, other, other]);
    // All else is stored once a cache.
    assert_eq!([named("/w_dk").len(), named("/w_uv").len()], [2, 2]);
}
