//! Operators that an exporter or a runtime writes around the caches, or in place of others: the attention is the same, and so
//! are the logits.

use crate::common::{SINGLE, compared, exact_after, grouped, in_ort, loaded, rewritten};
use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::graph::build::{floats, int64_vector, node};
use gqa2mla_passes::onnx::{GraphProto, NodeProto};
use gqa2mla_passes::{Absorbed, Form, RewriteOptions, inspect};

fn graph(model: &mut LoadedModel) -> &mut GraphProto {
    model.model.proto.graph.as_mut().unwrap()
}

/// Both layers of the changed fixture are rewritten to `form`, and nothing is lost.
fn holds(fixture: &str, change: fn(&mut GraphProto), form: &dyn Form) {
    let (_, done) = exact_after(fixture, "respelled", change, form);
    assert_eq!(done.sites.len(), 2, "{fixture}");
}

/// Every Softmax, in the five operators that define it.
fn softmax_spelled_out(graph: &mut GraphProto) {
    graph.initializer.push(int64_vector("last_axis", &[-1]));
    let nodes = std::mem::take(&mut graph.node);
    for old in nodes {
        if old.op_type() != "Softmax" {
            graph.node.push(old);
            continue;
        }
        let (x, p) = (old.input[0].as_str(), old.output[0].as_str());
        let part = |name: &str| format!("{p}/{name}");
        let made = |op: &str, inputs: &[&str], name: &str| node(op, name, inputs, &[name]);
        let [most, less, power, sum] = ["most", "less", "power", "sum"].map(part);
        graph.node.extend([
            made("ReduceMax", &[x, "last_axis"], &most),
            made("Sub", &[x, &most], &less),
            made("Exp", &[&less], &power),
            made("ReduceSum", &[&power, "last_axis"], &sum),
            made("Div", &[&power, &sum], p),
        ]);
    }
}

#[test]
fn a_softmax_that_is_spelled_out_is_one() {
    for fixture in ["optimum-llama", "dynamo18-llama-eager"] {
        holds(fixture, softmax_spelled_out, &Absorbed);
    }
}

/// A convolution of each channel behind the embedding, in a file that declares no inner shapes.
fn convolved(graph: &mut GraphProto) {
    graph.value_info.clear();
    let reads = |n: &NodeProto| n.op_type() == "Gather" && n.input[1] == "input_ids";
    let at = graph.node.iter().position(reads).unwrap();
    let rows = std::mem::replace(&mut graph.node[at].output[0], "embedded".to_owned());
    let table = graph.node[at].input[0].clone();
    let table = graph.initializer.iter().find(|t| t.name() == table);
    let width = table.unwrap().dims[1];
    let factors: Vec<f32> = (0..width).map(|c| 1.0 + 0.01 * c as f32).collect();
    let mut weight = floats(&[width, 1, 1], &factors);
    weight.name = Some("by_channel".to_owned());
    graph.initializer.push(weight);
    let turned = |name: &str, from: &str, to: &str| {
        node("Transpose", name, &[from], &[to]).with_ints("perm", &[0, 2, 1])
    };
    let conv = node("Conv", "conv", &["columns", "by_channel"], &["sums"]);
    let new = [
        turned("turn", "embedded", "columns"),
        conv.with_int("group", width),
        turned("turn_back", "sums", &rows),
    ];
    graph.node.splice(at + 1..at + 1, new);
}

#[test]
fn a_convolution_keeps_the_shapes_behind_it() {
    holds("optimum-llama", convolved, &Absorbed);
}

/// Positions that are no numbers in turn: in the first prompt, the operator counts on from the first of them.
fn odd_positions(graph: &mut GraphProto) {
    let mut positions = graph.input[0].clone();
    assert_eq!(positions.name(), "input_ids");
    positions.name = Some("position_ids".to_owned());
    graph.input.push(positions);
    graph.initializer.push(int64_vector("two", &[2]));
    graph.initializer.push(int64_vector("three", &[3]));
    let twice = node("Mul", "twice", &["position_ids", "two"], &["twice"]);
    let odd = node("Add", "odd", &["twice", "three"], &["odd"]);
    graph.node.splice(0..0, [twice, odd]);
    for n in &mut graph.node {
        if n.op_type() == "GroupQueryAttention" {
            n.input.resize(10, String::new());
            n.input[9] = "odd".to_owned();
        }
    }
}

/// The same without a rotation, where positions mean nothing.
fn positions_without_rotation(graph: &mut GraphProto) {
    odd_positions(graph);
    for n in &mut graph.node {
        if n.op_type() == "GroupQueryAttention" {
            n.attribute.retain(|a| a.name() != "do_rotary");
            n.input[7].clear();
            n.input[8].clear();
        }
    }
}

#[test]
fn an_operator_may_be_given_its_positions() {
    for form in [&Absorbed as &dyn Form, grouped()] {
        holds("genai-llama", odd_positions, form);
        holds("genai-llama", positions_without_rotation, form);
    }
}

/// The branch of Whisper that computes the keys of the encoder.
fn first_step(model: &mut LoadedModel) -> &mut GraphProto {
    let choice = graph(model).node.iter_mut().find(|n| n.op_type() == "If");
    let branches = &mut choice.unwrap().attribute;
    let branch = branches.iter_mut().find(|a| a.name() == "else_branch");
    branch.unwrap().g.as_mut().unwrap()
}

/// Keys of the encoder are none of a cache that grows, whatever scales them or turns them.
#[test]
fn cross_attention_is_none_of_the_refused() {
    let scaled = |branch: &mut GraphProto| {
        let is_made = |n: &NodeProto| n.name().ends_with("layers.0/encoder_attn/k_proj/MatMul");
        let at = branch.node.iter().position(is_made).unwrap();
        let keys = std::mem::replace(&mut branch.node[at].output[0], "plain_keys".to_owned());
        let most = node("ReduceMax", "most", &["encoder_hidden_states"], &["most"]);
        let new = [
            most.with_int("keepdims", 0),
            node("Mul", "scaled", &["plain_keys", "most"], &[&keys]),
        ];
        branch.node.splice(at + 1..at + 1, new);
    };
    let turned = |branch: &mut GraphProto| {
        let is_scale = |n: &NodeProto| n.name().ends_with("layers.0/encoder_attn/Mul_2");
        let scale = branch.node.iter().find(|n| is_scale(n)).unwrap().clone();
        let nodes = branch.node.iter_mut();
        for product in nodes.filter(|n| n.input.contains(&scale.output[0])) {
            product.input[1].clone_from(&scale.input[0]);
        }
    };
    for change in [scaled, turned] {
        let mut model = loaded("optimum-whisper");
        change(first_step(&mut model));
        let found = inspect(&model.model).unwrap();
        assert!(found.rejects.is_empty(), "{:?}", found.rejects);
        assert_eq!((found.sites.len(), found.others.len()), (4, 4));
        let layers: Vec<usize> = found.sites.iter().map(|s| s.layer).collect();
        assert_eq!(layers, [0, 1, 0, 1]);
    }
}

/// A layer that reads the present of another and makes none is told as what it is.
#[test]
fn an_operator_without_presents_shares_those_of_another() {
    let mut model = loaded("genai-qwen3");
    let nodes = &mut graph(&mut model).node;
    let mut operators = nodes
        .iter_mut()
        .filter(|n| n.op_type() == "GroupQueryAttention");
    let first = operators.next().unwrap();
    let presents = [first.output[1].clone(), first.output[2].clone()];
    let second = operators.next().unwrap();
    second.input[3..5].clone_from_slice(&presents);
    second.output.truncate(1);
    let gone = |name: &str| name.starts_with("present.1.");
    graph(&mut model).output.retain(|o| !gone(o.name()));
    let found = inspect(&model.model).unwrap();
    let told: Vec<String> = found.rejects.iter().map(ToString::to_string).collect();
    let shares = "as a layer that shares the keys and values of another";
    assert!(told[0].contains("also serves layer 1"), "{told:?}");
    assert!(told[1].contains(shares), "{told:?}");
}

/// A merged decoder whose presents have another name outside the `If`.
fn renamed_outside(graph: &mut GraphProto) {
    let choice = graph.node.iter_mut().find(|n| n.op_type() == "If").unwrap();
    let mut names = Vec::new();
    for output in &mut choice.output {
        if output.starts_with("present.") {
            let inner = format!("{output}/inner");
            names.push((inner.clone(), std::mem::replace(output, inner)));
        }
    }
    assert_eq!(names.len(), 4);
    let alias = |(inner, name): &(String, String)| {
        node("Identity", &format!("name_of_{name}"), &[inner], &[name])
    };
    graph.node.extend(names.iter().map(alias));
}

#[test]
fn presents_of_an_if_may_have_another_name_outside() {
    let mut before = loaded("merged-llama");
    renamed_outside(graph(&mut before));
    let mut after = loaded("merged-llama");
    renamed_outside(graph(&mut after));
    rewritten(&mut after, RewriteOptions::default()).unwrap();
    let comparison = compared(&before, &after, in_ort(SINGLE)).unwrap();
    assert!(comparison.passed(), "{:e}", comparison.max_ratio());
    // What computes with the other name is a reader.
    let mut read = before;
    let nodes = &mut graph(&mut read).node;
    nodes.push(node("Abs", "reader", &["present.0.key"], &["size"]));
    let found = inspect(&read.model).unwrap();
    let codes: Vec<&str> = found.rejects.iter().map(|r| r.reason.code()).collect();
    assert_eq!(codes, ["second-reader"; 2], "one layer, in both branches");
}
