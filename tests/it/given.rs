//! Inputs that no role tells: they hinder no rewrite, and are fed what the user says.

use crate::common::{fixture, folder, python, with};

/// A llama with one more input [B], which picks a row that is added to the embedded tokens.
const WITH_A_LANGUAGE: &str = r#"
import sys, numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
model = onnx.load(sys.argv[1])
graph = model.graph
graph.input.append(helper.make_tensor_value_info("language", TensorProto.INT64, ["batch_size"]))
embed = next(n for n in graph.node if n.op_type == "Gather" and "input_ids" in n.input)
width = next(t.dims[1] for t in graph.initializer if t.name == embed.input[0])
rows = np.random.default_rng(0).standard_normal((3, 1, width)).astype(np.float32)
graph.initializer.append(numpy_helper.from_array(rows, "languages"))
at = list(graph.node).index(embed)
embedded, embed.output[0] = embed.output[0], "tokens_alone"
graph.node.insert(at + 1, helper.make_node("Gather", ["languages", "language"], ["language_row"], "pick_language"))
graph.node.insert(at + 2, helper.make_node("Add", ["tokens_alone", "language_row"], [embedded], "add_language"))
onnx.save(model, sys.argv[2] + "/model.onnx")
np.save(sys.argv[2] + "/language.npy", np.array([2]))
"#;

#[test]
fn an_input_without_a_role_is_fed_by_name_and_never_stops_an_unproved_rewrite() {
    let place = folder();
    let source = fixture("optimum-llama").join("model.onnx");
    python(WITH_A_LANGUAGE, &[&source, place.path()]);
    let (model, out) = (
        place.path().join("model.onnx"),
        place.path().join("out.onnx"),
    );
    let ran = with(&[&"rewrite", &model, &"-o", &out]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for part in ["language", "--input language=VALUE", "--no-validate"] {
        assert!(ran.stderr.contains(part), "no '{part}' in {}", ran.stderr);
    }
    assert!(!out.exists());
    let ran = with(&[&"rewrite", &model, &"-o", &out, &"--no-validate"]);
    assert_eq!(ran.code, 0, "{ran:?}");

    let file = format!("language={}", place.path().join("language.npy").display());
    for given in ["language=1", &file] {
        let ran = with(&[&"validate", &model, &out, &"--input", &given]);
        assert_eq!(ran.code, 0, "{given}: {ran:?}");
        assert!(ran.stdout.contains("batch of 2"), "{given}: {ran:?}");
    }
    for (given, told) in [
        ("accent=1", "the model has no input of this name"),
        ("language", "expected NAME=VALUE"),
        ("language=loud", "neither a number nor a .npy file"),
        ("language=nowhere.npy", "nowhere.npy"),
    ] {
        let ran = with(&[&"validate", &model, &out, &"--input", &given]);
        assert!(matches!(ran.code, 1 | 2), "{given}: {ran:?}");
        assert!(ran.stderr.contains(told), "{given}: {ran:?}");
    }
}

/// The states of an encoder [1, 5, 64], for every row alike.
const ENCODER_STATES: &str = r#"
import sys, numpy as np
np.save(sys.argv[1] + "/states.npy", np.random.default_rng(1).standard_normal((1, 5, 64)).astype(np.float32))
"#;

#[test]
fn the_output_of_an_encoder_can_be_given() {
    let place = folder();
    python(ENCODER_STATES, &[place.path()]);
    let out = place.path().join("out.onnx");
    let states = place.path().join("states.npy");
    let given = format!("encoder_hidden_states={}", states.display());
    let ran = with(&[
        &"rewrite",
        &fixture("optimum-whisper"),
        &"-o",
        &out,
        &"--input",
        &given,
        &"--tolerance",
        &"2e-5",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for part in [
        "2 attentions rewritten",
        "batch of 2",
        "measured cache: 1,024 -> 1,024",
    ] {
        assert!(ran.stdout.contains(part), "no '{part}' in {}", ran.stdout);
    }
}
