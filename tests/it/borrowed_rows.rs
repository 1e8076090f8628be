//! `GroupQueryAttention` with keys and values of length 0, whose past is the present of an earlier layer (Gemma 4 by mobius).

use std::path::{Path, PathBuf};

use gqa2mla::files::load::LoadedModel;
use gqa2mla::files::save::save;
use gqa2mla_passes::forms::{Form, Join};
use gqa2mla_passes::graph::build::{int64_vector, node};
use gqa2mla_passes::onnx::{GraphProto, NodeProto};
use gqa2mla_passes::{Absorbed, LatentPast, RankPlan, RewriteOptions, inspect};

use crate::common::{
    Ran, SINGLE, folder, grouped, loaded, proved, rewritten, rewritten_to, root, with,
};

/// Gemma 4 by mobius: four layers, of which 2 reads the cache of 0 and 3 that of 1.
pub const BORROWED: &str = "mobius-gemma4";
const FIXTURE: &str = "genai-qwen3";

fn operators(graph: &mut GraphProto) -> Vec<&mut NodeProto> {
    let nodes = graph.node.iter_mut();
    nodes
        .filter(|n| n.op_type() == "GroupQueryAttention")
        .collect()
}

/// The fixture, whose second layer reads the cache of the first, without rows of its own if `none`.
fn borrowing(none: bool) -> LoadedModel {
    let mut model = loaded(FIXTURE);
    let graph = model.model.proto.graph.as_mut().unwrap();
    let mut operators = operators(graph);
    let presents = operators[0].output[1..3].to_vec();
    let second = &mut operators[1];
    let query = second.input[0].clone();
    second.input.splice(3..5, presents);
    for (output, unread) in second
        .output
        .iter_mut()
        .skip(1)
        .zip(["unread_k", "unread_v"])
    {
        *output = unread.to_owned();
    }
    if !none {
        second.output.truncate(1);
    }
    if none {
        second.input[1] = "no_rows".to_owned();
        second.input[2] = "no_rows".to_owned();
    }
    let at = graph
        .node
        .iter()
        .position(|n| n.input.contains(&"no_rows".to_owned()));
    let nodes = [
        node("Shape", "none/batch", &[&query], &["none/batch"])
            .with_int("start", 0)
            .with_int("end", 1),
        node(
            "Concat",
            "none/shape",
            &["none/batch", "none/width"],
            &["none/shape"],
        )
        .with_int("axis", 0),
        node(
            "ConstantOfShape",
            "none/zeros",
            &["none/shape"],
            &["none/zeros"],
        ),
        node("CastLike", "none", &["none/zeros", &query], &["no_rows"]),
    ];
    if let Some(at) = at {
        graph.node.splice(at..at, nodes);
        graph.initializer.push(int64_vector("none/width", &[0, 48]));
    }
    let own = |name: &str| name.contains("past_key_values.1") || name.contains("present.1");
    graph.input.retain(|input| !own(input.name()));
    graph.output.retain(|output| !own(output.name()));
    model
}

fn saved(model: &LoadedModel, place: &Path) -> PathBuf {
    let path = place.join("model.onnx");
    save(model, &path).unwrap();
    path
}

fn rewrite(model: &Path, place: &Path, options: &[&str]) -> Ran {
    let out = place.join("out.onnx");
    let mut all: Vec<&dyn AsRef<Path>> = vec![&"rewrite", &model, &"-o", &out, &"--force"];
    all.extend(options.iter().map(|o| o as &dyn AsRef<Path>));
    with(&all)
}

#[test]
fn a_layer_without_new_rows_reads_the_cache_of_another() {
    let shared = [None, None, Some(0), Some(1)];
    for (model, expected) in [
        (borrowing(true), &[None, Some(0)][..]),
        (loaded(BORROWED), &shared),
    ] {
        let found = inspect(&model.model).unwrap();
        let shares: Vec<_> = found.sites.iter().map(|site| site.shares).collect();
        assert_eq!(shares, expected, "{:#?}", found.rejects);
    }
}

#[test]
fn every_form_that_serves_several_readers_is_exact() {
    let own = [borrowing(true), loaded(BORROWED)];
    own.iter().for_each(is_exact_in_every_form);
}

fn is_exact_in_every_form(before: &LoadedModel) {
    let forms: [&'static dyn Form; 3] = [&Absorbed, &LatentPast, grouped()];
    for form in forms {
        let after = rewritten_to(before, form, RankPlan::Full);
        proved(form.name(), (before, &after), SINGLE);
    }
    let mut after = before.clone();
    let options = RewriteOptions {
        join: Join::InPlace,
        ..RewriteOptions::default()
    };
    rewritten(&mut after, options).unwrap();
    proved("in place", (before, &after), SINGLE);
}

/// With the operator, the second layer reads latents of the first, and appends none.
#[test]
fn the_operator_reads_borrowed_latents_and_integers() {
    let place = folder();
    let model = saved(&borrowing(true), place.path());
    let tokens = root().join("fixtures/tokens.json").display().to_string();
    let latent = ["--target", "gqa", "--new-tokens", "latent"];
    let told = rewrite(&model, place.path(), &latent);
    assert_eq!(told.code, 0, "{told:?}");
    for bits in ["8", "4"] {
        let more = [
            "--cache-bits",
            bits,
            "--token-ids",
            &tokens,
            "--length",
            "64",
        ];
        let told = rewrite(&model, place.path(), &[&latent[..], &more].concat());
        assert_eq!(told.code, 0, "{told:?}");
    }
    // A prompt of the exporter's operator would need the heads of the first layer.
    let told = rewrite(&model, place.path(), &["--target", "gqa"]);
    assert_eq!(told.code, 2, "{told:?}");
    assert!(told.stderr.contains("use --new-tokens latent"), "{told:?}");
}

/// A layer that puts rows of its own behind those of another is none that shares a cache.
#[test]
fn rows_behind_those_of_another_layer_are_refused() {
    let found = inspect(&borrowing(false).model).unwrap();
    assert!(found.sites.is_empty(), "{:#?}", found.sites);
    let told: Vec<String> = found.rejects.iter().map(|r| r.reason.to_string()).collect();
    assert!(told[1].contains("returns no present"), "{told:?}");
}

/// An exporter may declare caches for the layers that have none.
#[test]
fn an_input_that_no_node_reads_is_fed_anything() {
    let mut before = loaded(BORROWED);
    let graph = before.model.proto.graph.as_mut().unwrap();
    let past = graph
        .input
        .iter()
        .find(|i| i.name() == "past_key_values.1.key");
    let mut unread = past.unwrap().clone();
    unread.name = Some("past_key_values.2.key".to_owned());
    graph.input.push(unread);
    let after = rewritten_to(&before, &Absorbed, RankPlan::Full);
    proved("unread", (&before, &after), SINGLE);
}
