//! `--allow-partial`: attentions that were not recognised, or cannot take the form, stay as they are; the others lose nothing.

use gqa2mla::files::load::LoadedModel;
use gqa2mla::files::save::save;
use gqa2mla_passes::forms::{AbsorbedPrompt, Join};
use gqa2mla_passes::graph::build::node;
use gqa2mla_passes::onnx::{GraphProto, NodeProto};
use gqa2mla_passes::recognize::reject::Reject;
use gqa2mla_passes::{Expanded, RewriteError, RewriteOptions};

use crate::common::{SINGLE, folder, grouped, loaded, model_at, proved, rewritten, with};

fn graph(model: &mut LoadedModel) -> &mut GraphProto {
    model.model.proto.graph.as_mut().unwrap()
}

/// The `Concat` that joins a past and the new rows to `present`, if it is in `graph`.
fn join(graph: &GraphProto, present: &str) -> Option<usize> {
    let joins =
        |n: &NodeProto| n.op_type() == "Concat" && n.input.len() == 2 && n.output[0] == present;
    graph.node.iter().position(joins)
}

/// Puts a node `op` in front of input `at` of the `Concat` that makes `present`.
fn before_the_cache(graph: &mut GraphProto, op: &str, at: usize, present: &str) {
    let concat = join(graph, present).unwrap();
    let (name, input) = (
        format!("{op}_in_front"),
        graph.node[concat].input[at].clone(),
    );
    graph.node[concat].input[at] = name.clone();
    graph
        .node
        .insert(concat, node(op, &name, &[&input], &[&name]));
}

/// The layers, codes and texts of what was left.
fn told(rejects: &[Reject]) -> Vec<(usize, &'static str, String)> {
    let tell = |r: &Reject| (r.layer, r.reason.code(), r.to_string());
    rejects.iter().map(tell).collect()
}

/// Without `--allow-partial` the whole rewrite is refused; with it, `layer` stays and every logit is as before.
fn stays(before: &LoadedModel, options: RewriteOptions, layer: usize, words: &str) -> LoadedModel {
    let error = rewritten(&mut model_of(before), options.clone()).unwrap_err();
    assert!(matches!(error, RewriteError::Form { .. }), "{error}");
    assert!(error.to_string().contains(words), "{error}");
    let mut after = model_of(before);
    let partial = RewriteOptions {
        allow_partial: true,
        ..options
    };
    let done = rewritten(&mut after, partial).unwrap();
    assert!(done.sites.iter().all(|s| s.site.layer != layer));
    assert!(!done.sites.is_empty());
    let left = told(&done.rejects);
    assert!(!left.is_empty(), "it is not told that something was left");
    for (of, code, text) in left {
        assert_eq!((of, code), (layer, "other-form"), "{text}");
        assert!(text.contains(words), "{text}");
    }
    proved(words, (before, &after), SINGLE);
    after
}

fn model_of(before: &LoadedModel) -> LoadedModel {
    let place = folder();
    let path = place.path().join("model.onnx");
    save(before, &path).unwrap();
    model_at(&path)
}

fn past_widths(model: &LoadedModel) -> Vec<(String, Vec<i64>)> {
    use gqa2mla_passes::onnx::{tensor_shape_proto::dimension::Value, type_proto};
    let mut widths = Vec::new();
    for input in &model.model.proto.graph.as_ref().unwrap().input {
        let Some(type_proto::Value::TensorType(tensor)) =
            input.r#type.as_ref().and_then(|t| t.value.as_ref())
        else {
            continue;
        };
        let dims = tensor.shape.as_ref().unwrap().dim.iter();
        let fixed = dims.filter_map(|d| match d.value {
            Some(Value::DimValue(n)) => Some(n),
            _ => None,
        });
        if input.name().starts_with("past") {
            widths.push((input.name().to_owned(), fixed.collect()));
        }
    }
    widths
}

#[test]
fn a_cache_that_cannot_be_written_in_place_is_left_to_grow() {
    let mut before = loaded("optimum-llama");
    before_the_cache(graph(&mut before), "Identity", 0, "present.0.key");
    let options = RewriteOptions {
        join: Join::InPlace,
        ..RewriteOptions::default()
    };
    let after = stays(
        &before,
        options,
        0,
        "Identity 'Identity_in_front' copies it",
    );
    let widths = past_widths(&after);
    assert!(
        widths.contains(&("past_key_values.0.key".to_owned(), vec![2, 16])),
        "{widths:?}"
    );
    assert!(
        widths.contains(&("past_key_values.1.key".to_owned(), vec![1, 32])),
        "{widths:?}"
    );
}

#[test]
fn keys_whose_rotation_is_unknown_are_left() {
    let mut before = loaded("optimum-llama");
    before_the_cache(graph(&mut before), "Tanh", 1, "present.1.key");
    let options = RewriteOptions {
        form: &Expanded,
        ..RewriteOptions::default()
    };
    stays(
        &before,
        options,
        1,
        "the rotation of its keys is not recognised",
    );
}

/// One branch can take the form and the other cannot: both fill one cache, and neither may change.
#[test]
fn branches_that_share_a_cache_stay_together() {
    let mut before = loaded("merged-llama");
    let present = "present.0.key";
    let nodes = graph(&mut before).node.iter_mut();
    let mut branches = nodes
        .flat_map(|n| &mut n.attribute)
        .filter_map(|a| a.g.as_mut());
    let later = branches.find(|branch| join(branch, present).is_some());
    before_the_cache(later.unwrap(), "Tanh", 1, present);
    let options = RewriteOptions {
        form: &Expanded,
        ..RewriteOptions::default()
    };
    stays(&before, options, 0, "cannot take the form expanded");
}

/// The cache that is left has no room for new rows: what tells a prompt is read from one that has.
#[test]
fn a_prompt_is_told_by_a_cache_that_is_written_in_place() {
    let mut before = loaded("optimum-llama");
    before_the_cache(graph(&mut before), "Identity", 0, "present.0.key");
    let options = RewriteOptions {
        join: Join::InPlace,
        form: &AbsorbedPrompt,
        ..RewriteOptions::default()
    };
    stays(
        &before,
        options,
        0,
        "Identity 'Identity_in_front' copies it",
    );
}

#[test]
fn where_none_can_take_the_form_the_error_is_the_same() {
    let error = |allow_partial| {
        let options = RewriteOptions {
            form: grouped(),
            allow_partial,
            ..RewriteOptions::default()
        };
        rewritten(&mut loaded("dynamo18-dv"), options).unwrap_err()
    };
    assert_eq!(error(true).to_string(), error(false).to_string());
}

#[test]
fn the_command_tells_what_it_left_and_why() {
    let place = folder();
    let (model, out) = (
        place.path().join("model.onnx"),
        place.path().join("out.onnx"),
    );
    let mut before = loaded("optimum-llama");
    before_the_cache(graph(&mut before), "Identity", 0, "present.0.key");
    save(&before, &model).unwrap();
    let ran = with(&[
        &"rewrite",
        &model,
        &"-o",
        &out,
        &"--cache-io",
        &"inplace",
        &"--allow-partial",
        &"--json",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let told = ran.json();
    let done = &told["rewrite"];
    assert_eq!(
        (done["rewritten"].as_u64(), done["not_rewritten"].as_u64()),
        (Some(1), Some(1))
    );
    assert_eq!(done["rejects"][0]["code"], "other-form", "{done:#}");
    assert_eq!(told["validation"]["passed"], true, "{told:#}");
}
