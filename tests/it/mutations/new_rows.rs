//! New rows that may not have the sizes of the cache. ONNX Runtime does not compare the sizes of an empty past, so that the
//! first step of such a model runs, and the rewritten model does not.

use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::graph::build::{int64_vector, node};
use gqa2mla_passes::onnx::NodeProto;
use gqa2mla_passes::{RewriteOptions, by_weights, rewrite};

use super::{base, graph};

/// The node of `model` that makes `value`.
fn maker<'a>(model: &'a mut LoadedModel, value: &str) -> &'a mut NodeProto {
    let mut nodes = graph(model).node.iter_mut();
    nodes.find(|n| n.output[0] == value).unwrap()
}

/// Layer 1 of `model` is refused since its rows are `found`, and not those of its cache.
fn refused(mut model: LoadedModel, found: &str) {
    graph(&mut model).value_info.clear();
    let done = rewrite(
        &mut model.model,
        &RewriteOptions::default(),
        &mut by_weights,
        &mut |tensor| Ok(tensor),
        &mut |_, _| {},
    );
    let Err(error) = done else {
        panic!("rewritten without a word");
    };
    let error = error.to_string();
    let (_, about) = error
        .split_once("layer 1: ")
        .unwrap_or_else(|| panic!("{error}"));
    let told = about.contains(found) && about.contains("expected rows of the cache");
    assert!(told, "{error}");
}

#[test]
fn rows_of_a_fixed_batch_are_refused_where_the_caller_chooses_it() {
    let mut model = base("optimum-mistral");
    let sizes = "/model/layers.1/self_attn/Concat_2_output_0";
    maker(&mut model, sizes).input.swap(0, 3);
    refused(model, "[16, ");
}

/// The values that are cut out of a projection of queries, keys and values.
const VALUES: &str = "/model/layers.1/self_attn/Slice_2_output_0";

/// The cut from channel 96 on becomes one from sequence 96 on: there are no such sequences, and so no heads.
#[test]
fn rows_of_a_number_of_heads_that_nothing_tells_are_refused() {
    let mut model = base("optimum-phi3");
    graph(&mut model)
        .initializer
        .push(int64_vector("sequences", &[0]));
    maker(&mut model, VALUES).input[3] = "sequences".to_owned();
    refused(model, "[batch_size, ?");
}

/// The values of the first sequence, for all sequences.
#[test]
fn rows_of_the_first_sequence_are_refused() {
    let mut model = base("optimum-mistral");
    let values = "/model/layers.1/self_attn/Transpose_2_output_0";
    let graph = graph(&mut model);
    graph.initializer.push(int64_vector("none", &[0]));
    graph.initializer.push(int64_vector("one", &[1]));
    let reads =
        |n: &NodeProto| n.op_type() == "Concat" && n.input.get(1).is_some_and(|i| i == values);
    let at = graph.node.iter().position(reads).unwrap();
    let first = "of_the_first";
    graph.node[at].input[1] = first.to_owned();
    graph.node.insert(
        at,
        node("Slice", first, &[values, "none", "one", "none"], &[first]),
    );
    refused(model, "[?");
}
