//! Attention in a spelling that is not followed, or that a caller can change, is refused by name: never passed over, and
//! never rewritten as something that it is not.

use crate::common::{fixture, folder, python, root, with};
use serde_json::{Value, json};

/// A variant that tests/python/variants.py makes, and the reason that its first layer gets.
pub const VARIANTS: [(&str, &str); 15] = [
    ("reshape", "scores-rearranged"),
    ("einsum", "unsupported-operator"),
    ("sigmoid", "unknown-reader"),
    ("overridable", "scale-not-constant"),
    ("past_output", "output-inside"),
    ("crossed", "crossed-caches"),
    ("step", "opaque-operator"),
    ("changed_key", "changed-after-caching"),
    ("changed_value", "changed-after-caching"),
    ("window", "cache-form"),
    ("static", "cache-form"),
    ("shared", "shared-cache"),
    ("quantized_pair", "quantized-products"),
    ("integers", "quantized-products"),
    ("by_head", "permuted-heads"),
];

/// What the first reason says of each, and how many attentions of how many are recognised: of the two layers, one is as it
/// was unless the change concerns both.
const TOLD: [(&str, &str, (u64, u64)); 8] = [
    (
        "changed_key",
        "keys that are cached as the product reads them (after rotation)",
        (1, 1),
    ),
    (
        "changed_value",
        "values that are cached as the product reads them (node",
        (1, 1),
    ),
    (
        "window",
        "drops the oldest rows (a window or ring cache)",
        (1, 1),
    ),
    (
        "static",
        "writes into a buffer of one length (a static cache)",
        (1, 1),
    ),
    (
        "shared",
        "the cache 'past_key_values.0.key' also serves layer 1, which is refused and would find latents in place of heads",
        (0, 2),
    ),
    (
        "quantized_pair",
        "the key is rounded to integers in front of the product, by DequantizeLinear",
        (1, 1),
    ),
    ("integers", "by MatMulInteger", (1, 1)),
    (
        "by_head",
        "the key's heads are picked in the order [0]",
        (1, 1),
    ),
];

fn codes(told: &Value) -> Vec<String> {
    let rejects = told["rejects"].as_array().unwrap();
    rejects
        .iter()
        .map(|r| r["code"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn what_is_not_followed_is_refused_by_name() {
    let place = folder();
    let script = std::fs::read_to_string(root().join("tests/python/variants.py")).unwrap();
    let source = fixture("optimum-llama").join("model.onnx");
    python(&script, &[&source, place.path()]);
    for (name, code) in VARIANTS {
        let model = place.path().join(format!("{name}.onnx"));
        let ran = with(&[&"inspect", &model, &"--json"]);
        assert_eq!(ran.code, 3, "{name}: {ran:?}");
        let told = ran.json();
        assert!(codes(&told).iter().any(|c| c == code), "{name}: {told:#}");
        if let Some((_, text, (yes, no))) = TOLD.iter().find(|(known, ..)| known == &name) {
            let counts = json!([told["recognised"], told["not_recognised"]]);
            assert_eq!(counts, json!([yes, no]), "{name}: {told:#}");
            let shown = with(&[&"inspect", &model]).stdout;
            assert!(shown.contains(text), "{name}: no '{text}' in {shown}");
        }
        let out = place.path().join("out.onnx");
        let ran = with(&[&"rewrite", &model, &"-o", &out]);
        assert_eq!(ran.code, 3, "{name}: {ran:?}");
        assert!(!out.exists(), "{name}: something was written");
    }
}

#[test]
fn what_a_rewrite_has_made_is_known_as_latent() {
    let place = folder();
    for (name, options) in [
        ("optimum-llama", ["--target", "matmul"]),
        ("dynamo18-llama", ["--target", "matmul"]),
        ("genai-llama", ["--target", "matmul"]),
    ] {
        let out = place.path().join("latent.onnx");
        let ran = with(&[
            &"rewrite",
            &fixture(name),
            &"-o",
            &out,
            &options[0],
            &options[1],
            &"--no-validate",
        ]);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let ran = with(&[&"inspect", &out, &"--json"]);
        assert_eq!(ran.code, 3, "{name}: {ran:?}");
        assert_eq!(
            json!(codes(&ran.json())),
            json!(["already-latent", "already-latent"]),
            "{name}"
        );
    }
}

/// An operator around one latent head is an attention with one KV head: it can be looked at, and rewritten again.
#[test]
fn a_rewrite_that_kept_its_operator_can_be_read_again() {
    let place = folder();
    let (once, twice) = (
        place.path().join("once.onnx"),
        place.path().join("twice.onnx"),
    );
    let ran = with(&[
        &"rewrite",
        &fixture("genai-llama"),
        &"-o",
        &once,
        &"--target",
        &"gqa",
        &"--new-tokens",
        &"latent",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let told = with(&[&"inspect", &once, &"--json"]).json();
    assert_eq!(
        json!([told["recognised"], told["sites"][0]["kv_heads"]]),
        json!([2, 1])
    );
    let ran = with(&[&"rewrite", &once, &"-o", &twice]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// With a prompt that the exporter's operator reads, nothing can be recognised again; what to do instead is told.
#[test]
fn inspect_says_that_a_model_is_rewritten_already() {
    let place = folder();
    let out = place.path().join("once.onnx");
    let ran = with(&[
        &"rewrite",
        &fixture("genai-llama"),
        &"-o",
        &out,
        &"--target",
        &"gqa",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let way_out =
        "rewritten by gqa2mla: to change its cache, rewrite the model that it was made from";
    let told = with(&[&"inspect", &out]).stdout;
    assert!(told.contains(way_out), "{told}");
    assert!(told.ends_with("0 of 2 attentions recognised\n"), "{told}");
    let again = with(&[&"rewrite", &out, &"-o", &place.path().join("twice.onnx")]);
    assert_eq!(again.code, 3, "{again:?}");
    assert!(again.stderr.ends_with(&format!("{way_out}\n")), "{again:?}");
}

/// What stands between the two products, here a second softmax, concerns no cache: it stays, and the attention is one.
#[test]
fn a_second_softmax_between_the_products_is_part_of_the_attention() {
    let place = folder();
    let (model, out) = (
        place.path().join("twice.onnx"),
        place.path().join("out.onnx"),
    );
    let script = "
import onnx, sys
from onnx import helper
model = onnx.load(sys.argv[1])
nodes = model.graph.node
for at in reversed(range(len(nodes))):
    if nodes[at].op_type == 'Softmax':
        first, name = nodes[at], nodes[at].output[0]
        first.output[0] = name + '/first'
        nodes.insert(at + 1, helper.make_node('Softmax', [name + '/first'], [name + '/second'], name + '/second', axis=-1))
        nodes.insert(at + 2, helper.make_node('Add', [name + '/first', name + '/second'], [name], name + '/sum'))
onnx.save(model, sys.argv[2])
";
    python(
        script,
        &[&fixture("optimum-llama").join("model.onnx"), &model],
    );
    let told = with(&[&"inspect", &model, &"--json"]).json();
    assert_eq!(
        json!([told["recognised"], told["not_recognised"]]),
        json!([2, 0])
    );
    let ran = with(&[&"rewrite", &model, &"-o", &out, &"--tolerance", &"2e-5"]);
    assert_eq!(ran.code, 0, "{ran:?}");
}
