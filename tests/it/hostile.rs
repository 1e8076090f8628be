//! Models that are legal to write and made to mislead or to exhaust: refused with the reason, or right.

use std::time::{Duration, Instant};

use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::facts::scoped::ScopeFacts;
use gqa2mla_passes::graph::build::{NewSize, NewType, int64_vector, node, retyped, value};
use gqa2mla_passes::onnx::tensor_proto::DataType;
use gqa2mla_passes::onnx::tensor_shape_proto::dimension;
use gqa2mla_passes::onnx::{
    FunctionProto, GraphProto, OperatorSetIdProto, ValueInfoProto, type_proto,
};
use gqa2mla_passes::operators::Operators;
use gqa2mla_passes::{RewriteOptions, inspect};

use crate::common::{SINGLE, compared, fixture, in_ort, loaded, model_at, rewritten, with};

fn graph(model: &mut LoadedModel) -> &mut GraphProto {
    model.model.proto.graph.as_mut().unwrap()
}

#[test]
fn a_negative_size_is_named() {
    let case = fixture("cases/negative-dim/slice.onnx");
    let ran = with(&[&"inspect", &case]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let said = "tensor 'zneg' has the shape [-5]: a size is never negative";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);

    let ran = with(&[
        &"inspect",
        &fixture("cases/negative-dim/constant_of_shape.onnx"),
    ]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let said =
        "(ConstantOfShape): its input 'zm' is [-5], expected sizes, which are never negative";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
}

#[test]
fn functions_that_double_are_left_alone_with_the_reason() {
    let case = fixture("cases/functions-doubling/functions_20.onnx");
    let ran = with(&[&"rewrite", &case, &"-o", &"never-written.onnx"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let said = "nodes, more than 131072: export it without nested functions";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
}

#[test]
fn facts_of_many_branches_take_time_in_proportion() {
    let mut model = model_at(&fixture("cases/many-ifs/many_if_800.onnx"));
    let branches: Vec<_> = graph(&mut model)
        .node
        .iter()
        .filter(|n| n.op_type() == "If")
        .cloned()
        .collect();
    for copy in 0..20 {
        let renamed = branches.iter().cloned().map(|mut node| {
            for output in &mut node.output {
                output.push_str(&format!("/{copy}"));
            }
            node
        });
        let renamed: Vec<_> = renamed.collect();
        graph(&mut model).node.extend(renamed);
    }
    let model = model.model;
    let begin = Instant::now();
    ScopeFacts::infer(
        &model,
        model.proto.graph.as_ref().unwrap(),
        &Operators::default().rules(),
    );
    // 16,800 branches times 17,800 values were 300 million copies; in proportion it is a fraction of a second.
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
}

/// Moves each `MultiHeadAttention` into a function that imports its domain, which the model then no longer does.
fn behind_a_function(model: &mut LoadedModel) {
    let version = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    };
    let mut functions = Vec::new();
    for (number, call) in graph(model)
        .node
        .iter_mut()
        .filter(|n| n.op_type() == "MultiHeadAttention")
        .enumerate()
    {
        let mut inner = call.clone();
        let given: Vec<usize> = (0..inner.input.len())
            .filter(|&i| !inner.input[i].is_empty())
            .collect();
        for &position in &given {
            inner.input[position] = format!("in{position}");
        }
        call.input = given.iter().map(|&i| call.input[i].clone()).collect();
        let outputs: Vec<String> = (0..call.output.len()).map(|i| format!("out{i}")).collect();
        inner.output.clone_from(&outputs);
        call.attribute.clear();
        call.domain = Some("own".to_owned());
        call.op_type = Some(format!("Attention{number}"));
        functions.push(FunctionProto {
            name: call.op_type.clone(),
            domain: Some("own".to_owned()),
            input: given.iter().map(|i| format!("in{i}")).collect(),
            output: outputs,
            node: vec![inner],
            opset_import: vec![version("com.microsoft", 1)],
            ..FunctionProto::default()
        });
    }
    let proto = &mut model.model.proto;
    proto.functions.extend(functions);
    proto.opset_import.retain(|o| o.domain() != "com.microsoft");
    proto.opset_import.push(version("own", 1));
}

#[test]
fn a_function_brings_the_operator_set_that_the_model_has_not_imported() {
    let (mut before, mut after) = (loaded("multi_head-llama"), loaded("multi_head-llama"));
    behind_a_function(&mut before);
    behind_a_function(&mut after);
    let done = rewritten(&mut after, RewriteOptions::default()).unwrap();
    assert_eq!(done.sites.len(), 2);
    let comparison = compared(&before, &after, in_ort(SINGLE)).unwrap();
    assert!(comparison.passed(), "{:e}", comparison.max_ratio());
}

/// Gives every symbolic size of the interface the name `name`.
fn all_named(graph: &mut GraphProto, name: &str) {
    let rename = |info: &mut ValueInfoProto| {
        let kind = info.r#type.as_mut().and_then(|t| t.value.as_mut());
        let Some(type_proto::Value::TensorType(tensor)) = kind else {
            return;
        };
        for dim in tensor.shape.iter_mut().flat_map(|s| &mut s.dim) {
            if let Some(dimension::Value::DimParam(old)) = &mut dim.value {
                *old = name.to_owned();
            }
        }
    };
    graph.value_info.clear();
    graph.input.iter_mut().for_each(rename);
    graph.output.iter_mut().for_each(rename);
}

#[test]
fn sizes_that_all_have_one_name_are_not_taken_to_be_equal() {
    for fixture in ["optimum-llama", "dynamo18-llama", "genai-llama"] {
        for name in ["f", "?", "unknown"] {
            let (mut before, mut after) = (loaded(fixture), loaded(fixture));
            all_named(graph(&mut before), name);
            all_named(graph(&mut after), name);
            match rewritten(&mut after, RewriteOptions::default()) {
                Ok(_) => {
                    let comparison = compared(&before, &after, in_ort(SINGLE)).unwrap();
                    assert!(
                        comparison.passed(),
                        "{fixture}, {name}: {:e}",
                        comparison.max_ratio()
                    );
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(
                        !text.contains("internal error"),
                        "{fixture}, {name}: {text}"
                    );
                }
            }
        }
    }
}

#[test]
fn keys_that_are_rounded_to_another_half_precision_are_refused() {
    let mut model = loaded("dynamo18-llama-fp16");
    let graph = graph(&mut model);
    let present = graph.output.iter().map(ValueInfoProto::name);
    let present = present.filter(|n| n.contains("key") || n.contains("present"));
    let present = present.map(str::to_owned).next().unwrap();
    let reader = graph
        .node
        .iter()
        .position(|n| n.op_type() != "Shape" && n.input.contains(&present))
        .unwrap();
    for input in &mut graph.node[reader].input {
        if *input == present {
            *input = "rounded".to_owned();
        }
    }
    let cast = |from: &str, to: &str, kind: DataType| {
        node("Cast", to, &[from], &[to]).with_int("to", kind as i64)
    };
    graph
        .node
        .insert(reader, cast("narrow", "rounded", DataType::Float16));
    graph
        .node
        .insert(reader, cast(&present, "narrow", DataType::Bfloat16));
    let found = inspect(&model.model).unwrap();
    let reasons: Vec<String> = found.rejects.iter().map(ToString::to_string).collect();
    let said = "rounds to a narrower type and back";
    assert!(reasons.iter().any(|r| r.contains(said)), "{reasons:?}");
}

#[test]
fn a_constant_is_not_shared_with_another_of_its_name() {
    for (fixture, name) in [
        ("optimum-llama", "mla/[0,2,-1,16]"),
        ("dynamo23-llama", "mla/f32(0)"),
    ] {
        let with_a_namesake = || {
            let mut model = loaded(fixture);
            let other = gqa2mla_passes::graph::build::int64_vector(name, &[0, 2, -1, 8]);
            graph(&mut model).initializer.push(other);
            model
        };
        let (before, mut after) = (with_a_namesake(), with_a_namesake());
        rewritten(&mut after, RewriteOptions::default()).unwrap();
        let comparison = compared(&before, &after, in_ort(SINGLE)).unwrap();
        assert!(
            comparison.passed(),
            "{fixture}: {:e}",
            comparison.max_ratio()
        );
        let other = graph(&mut after)
            .initializer
            .iter()
            .any(|t| t.name() == format!("{name}+"));
        assert!(
            other,
            "{fixture}: nothing is called '{name}', so this shows nothing"
        );
    }
}

/// Declared shapes cost nothing, and factors are as large as what they declare.
#[test]
fn heads_that_no_model_has_are_refused_before_anything_of_their_size_is_made() {
    for (heads, size) in [
        (1 << 20, 1 << 20),
        (1 << 31, 1 << 31),
        (1 << 9, 1 << 8),
        (1 << 18, 1),
    ] {
        let mut model = loaded("optimum-llama");
        let graph = graph(&mut model);
        let sized = |name: &str, heads, length: &str, size| {
            let [batch, length] = ["batch", length].map(|s| NewSize::Symbol(s.to_owned()));
            let sizes = vec![batch, NewSize::Fixed(heads), length, NewSize::Fixed(size)];
            let elem_type = None;
            let plain = value(name, DataType::Float as i32, &[1; 4]);
            retyped(&plain, &NewType { elem_type, sizes })
        };
        let rows = |name: &str, length: &str| sized(name, heads, length, size);
        *graph = GraphProto {
            name: Some("wide".to_owned()),
            input: vec![
                sized("x", 1, "new", 1),
                rows("past_k", "past"),
                rows("past_v", "past"),
            ],
            output: vec![
                rows("present_k", "all"),
                rows("present_v", "all"),
                rows("out", "new"),
            ],
            initializer: vec![int64_vector("wide", &[1, heads, 1, size])],
            node: vec![
                node("Expand", "q", &["x", "wide"], &["q"]),
                node("Expand", "k", &["x", "wide"], &["k"]),
                node("Expand", "v", &["x", "wide"], &["v"]),
                node("Concat", "join_k", &["past_k", "k"], &["present_k"]).with_int("axis", 2),
                node("Concat", "join_v", &["past_v", "v"], &["present_v"]).with_int("axis", 2),
                node("Transpose", "kt", &["present_k"], &["kt"]).with_ints("perm", &[0, 1, 3, 2]),
                node("MatMul", "score", &["q", "kt"], &["score"]),
                node("Softmax", "p", &["score"], &["p"]).with_int("axis", -1),
                node("MatMul", "product", &["p", "present_v"], &["out"]),
            ],
            ..GraphProto::default()
        };
        let found = inspect(&model.model).unwrap();
        assert!(found.sites.is_empty(), "{heads} heads of {size}");
        let told: Vec<String> = found.rejects.iter().map(|r| r.reason.to_string()).collect();
        assert!(told.concat().contains("numbers of all"), "{told:?}");
    }
}
