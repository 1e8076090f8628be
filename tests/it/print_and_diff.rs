//! The two subcommands that show a model as text.

use crate::common::{fixture, fixtures, folder, with};

#[test]
fn print_shows_every_part_of_the_graph_and_no_weights() {
    let ran = with(&[&"print", &fixture("optimum14-llama")]);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    for line in [
        "ir_version 7",
        "opset ai.onnx 14",
        "input past_key_values.0.key: float[batch_size, 2, past_sequence_length, 16]",
        "initializer model.embed_tokens.weight: float[128,32]",
        "present.1.value = Concat(past_key_values.1.value, /model/layers.1/self_attn/Transpose_2_output_0) {axis=-2}",
        "output logits: float[batch_size, sequence_length, 128]",
    ] {
        assert!(lines.contains(&line), "no '{line}' in\n{}", ran.stdout);
    }
    let json = with(&[&"print", &fixture("optimum14-llama"), &"--json"]).json();
    let told: Vec<&str> = json["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_str().unwrap())
        .collect();
    assert_eq!(told, lines, "JSON and text say the same");
}

#[test]
fn print_of_one_layer_holds_that_layer_only() {
    for name in ["optimum-llama", "dynamo18-llama", "genai-llama"] {
        let whole = with(&[&"print", &fixture(name)]).stdout;
        let layers = ["0", "1"].map(|l| with(&[&"print", &fixture(name), &"--layer", &l]).stdout);
        for (own, other) in [(0, 1), (1, 0)] {
            let makes = |layer: usize| {
                let value = format!("present.{layer}.key");
                layers[own]
                    .lines()
                    .filter_map(|line| line.split_once(" = "))
                    .any(|(made, _)| made.split(", ").any(|v| v == value))
            };
            assert!(makes(own), "{name}: layer {own} lacks its own cache");
            assert!(
                !makes(other),
                "{name}: layer {own} holds the cache of {other}"
            );
            assert!(
                layers[own]
                    .lines()
                    .all(|line| whole.lines().any(|l| l == line)),
                "{name}: lines that the whole model does not have"
            );
        }
    }
    let ran = with(&[&"print", &fixture("optimum-llama"), &"--layer", &"2"]);
    assert_eq!(ran.code, 1);
    let said = "no node's name or scope says that it belongs to layer 2";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
}

#[test]
fn every_fixture_prints_the_same_text_every_time_and_equals_itself() {
    for name in fixtures() {
        let model = fixture(&name);
        let first = with(&[&"print", &model]);
        assert_eq!((first.code, first.stderr.as_str()), (0, ""), "{name}");
        assert!(
            first.stdout.lines().count() > 50,
            "{name}: {}",
            first.stdout
        );
        assert!(
            first.stdout == with(&[&"print", &model]).stdout,
            "{name}: another text"
        );
        let ran = with(&[&"diff", &model, &model]);
        assert_eq!(
            (ran.code, ran.stdout.trim_end()),
            (0, "the models are the same"),
            "{name}"
        );
    }
}

#[test]
fn diff_of_a_rewrite_shows_what_the_user_has_to_know() {
    let place = folder();
    let before = fixture("optimum-llama");
    let after = place.path().join("model.onnx");
    assert_eq!(
        with(&[
            &"rewrite",
            &before,
            &"-o",
            &after,
            &"--rank",
            &"16",
            &"--no-validate"
        ])
        .code,
        0
    );
    let text = with(&[&"diff", &before, &after]).stdout;
    for line in [
        "interface: 8 removed, 8 added",
        "- input past_key_values.0.key: float[batch_size, 2, past_sequence_length, 16]",
        "+ input past_key_values.0.key: float[batch_size, 1, past_sequence_length, 16]",
        "- present.0.key = Concat(past_key_values.0.key, /model/layers.0/self_attn/Add_1_output_0) {axis=-2}",
        "+ present.0.key = Concat(past_key_values.0.key, /model/layers.0/self_attn/MatMul/mla/k_B1Tr) {axis=2}",
    ] {
        assert!(text.lines().any(|l| l == line), "no '{line}' in\n{text}");
    }
    let weight = "+ /model/layers.0/self_attn/MatMul/mla/w_uk: float[2,16,16] crc32 ";
    assert!(
        text.lines().any(|l| l.starts_with(weight)),
        "no '{weight}' in\n{text}"
    );
    // The header says that this is an approximation, and how it was made; no weight of the model changed.
    assert!(text.starts_with("model: 0 removed, 1 added\n"), "{text}");
    assert!(text.contains("\n+ metadata gqa2mla = "), "{text}");
    assert!(
        !text.contains("- model.embed_tokens.weight") && !text.contains("- onnx::MatMul_"),
        "{text}"
    );

    // Turned around, what was added is removed.
    let back = with(&[&"diff", &after, &before]).stdout;
    let swapped: Vec<String> = text
        .lines()
        .filter(|l| l.starts_with("+ "))
        .map(|l| l.replacen('+', "-", 1))
        .collect();
    assert!(
        swapped.iter().all(|line| back.lines().any(|l| l == line)),
        "{back}"
    );
}

#[test]
fn diff_tells_weights_apart_that_have_one_name_and_shape() {
    let place = folder();
    let (one, other) = (place.path().join("16.onnx"), place.path().join("15.onnx"));
    let before = fixture("optimum-llama");
    assert_eq!(
        with(&[&"rewrite", &before, &"-o", &one, &"--no-validate"]).code,
        0
    );
    let mut model = gqa2mla::files::load::load(&one).unwrap();
    let graph = model.model.proto.graph.as_ref().unwrap();
    let at = graph
        .initializer
        .iter()
        .position(|t| t.name().starts_with("mla/w_uv"))
        .unwrap();
    let mut bytes = model
        .model
        .tensor_bytes(&graph.initializer[at])
        .unwrap()
        .to_vec();
    bytes[0] ^= 1;
    let factor = &mut model.model.proto.graph.as_mut().unwrap().initializer[at];
    factor.raw_data = Some(bytes.into());
    factor.data_location = None;
    factor.external_data.clear();
    gqa2mla::files::save::save(&model, &other).unwrap();
    let text = with(&[&"diff", &one, &other]).stdout;
    assert!(
        text.starts_with("initializers: 1 removed, 1 added\n"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 3, "{text}");
}

/// What differs inside branches, functions, constants and metadata is found too.
#[test]
fn diff_looks_into_every_part() {
    let place = folder();
    let script = "
import onnx, sys
from onnx import helper, TensorProto as T
def model(value, scale, note, inner):
    const = helper.make_node('Constant', [], ['c'], value=helper.make_tensor('v', T.FLOAT, [1], [value]))
    branch = lambda op: helper.make_graph([helper.make_node(op, ['x'], ['y'])], op, [], [helper.make_tensor_value_info('y', T.FLOAT, [2])])
    cond = helper.make_node('If', ['b'], ['z'], then_branch=branch(inner), else_branch=branch('Neg'))
    call = helper.make_node('F', ['z', 'c'], ['out'], domain='own')
    body = helper.make_function('own', 'F', ['p', 'q'], ['r'], [helper.make_node(scale, ['p', 'q'], ['r'])], [helper.make_opsetid('', 18)])
    graph = helper.make_graph([const, cond, call], 'g', [helper.make_tensor_value_info('x', T.FLOAT, [2]), helper.make_tensor_value_info('b', T.BOOL, [])], [helper.make_tensor_value_info('out', T.FLOAT, [2])])
    m = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18), helper.make_opsetid('own', 1)], functions=[body])
    helper.set_model_props(m, {'note': note})
    return m
base = (1.0, 'Mul', 'a', 'Abs')
for name, args in [('base', base), ('constant', (2.0, 'Mul', 'a', 'Abs')), ('function', (1.0, 'Add', 'a', 'Abs')), ('note', (1.0, 'Mul', 'b', 'Abs')), ('branch', (1.0, 'Mul', 'a', 'Exp'))]:
    onnx.save(model(*args), sys.argv[1] + '/' + name + '.onnx')
";
    crate::common::python(script, &[place.path()]);
    let at = |name: &str| place.path().join(format!("{name}.onnx"));
    let same = with(&[&"diff", &at("base"), &at("base")]).stdout;
    assert_eq!(same.trim(), "the models are the same");
    for (name, shown) in [
        ("constant", "+ c = Constant() {value=float[2.0]}"),
        ("function", "+ function own.F: r = Add(p, q)"),
        ("note", "+ metadata note = \"b\""),
        ("branch", "then_branch: y = Exp(x)"),
    ] {
        let ran = with(&[&"diff", &at("base"), &at(name)]);
        assert_eq!(ran.code, 1, "{name}: the models differ");
        let text = ran.stdout;
        assert!(text.contains(shown), "{name}: no '{shown}' in\n{text}");
    }
}
