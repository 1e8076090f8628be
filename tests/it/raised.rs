//! GroupQueryAttention in place of attentions that are written as products.

use std::path::Path;

use gqa2mla::files::load::LoadedModel;
use gqa2mla::files::save::save;
use gqa2mla_passes::forms::{GROUPED_PROMPT, GroupedQuery, KeptHeads};
use gqa2mla_passes::onnx::tensor_proto::DataType;
use gqa2mla_passes::onnx::tensor_shape_proto::{Dimension, dimension};
use gqa2mla_passes::onnx::{NodeProto, TensorShapeProto, type_proto};
use gqa2mla_passes::{Absorbed, Form, RankPlan, RewriteOptions, inspect};

use crate::common::{
    HALF, SINGLE, all_nodes, compared, fixture, folder, in_ort, loaded, model_at, python,
    recognised_fixtures, rewritten, root, with,
};

/// Fixtures whose attentions stay products, with words of the reason.
const REFUSED: [(&str, &str); 16] = [
    ("dynamo18-deepseek-v3", "its heads have 24 and 16 numbers"),
    ("dynamo18-dv", "its heads have 16 and 24 numbers"),
    ("dynamo18-gemma3n", "reads its cache too"),
    ("dynamo18-gemma4", "reads its cache too"),
    ("dynamo18-gptoss", "other operators than a scale"),
    ("dynamo18-llama-bf16", "not all of fp32, or all of fp16"),
    ("dynamo18-llama-nocache", "it has no cache"),
    ("dynamo18-t5gemma", "also has cross-attentions"),
    ("int8-llama", "without merging"),
    ("merged-llama", "without merging"),
    ("mobius-gemma4", "leave out --keep-heads"),
    ("mobius-llama", "its cache is static"),
    ("mobius-qwen3", "its cache is static"),
    ("optimum-whisper", "also has cross-attentions"),
    ("static-llama", "its cache is static"),
    ("genai-", "add --cache-bits 8"),
];

fn with_form(form: &dyn Form) -> RewriteOptions<'_> {
    RewriteOptions {
        form,
        ..RewriteOptions::default()
    }
}

fn tolerance(model: &LoadedModel) -> f64 {
    let sites = inspect(&model.model).unwrap().sites;
    match sites[0].elem_type == DataType::Float16 as i32 {
        true => HALF,
        false => SINGLE,
    }
}

fn count(nodes: &[&NodeProto], op: &str) -> usize {
    nodes.iter().filter(|n| n.op_type() == op).count()
}

/// Every fixture, the heads in the model's own type: the cache keeps its shape and the logits stay the same.
#[test]
fn the_operator_takes_the_place_of_products_in_every_dialect_that_is_not_refused() {
    let mut raised = 0;
    for name in recognised_fixtures() {
        let before = loaded(&name);
        let mut after = loaded(&name);
        let done = rewritten(&mut after, with_form(&KeptHeads));
        let refused = REFUSED
            .iter()
            .find(|(refused, _)| name.starts_with(refused));
        match (done, refused) {
            (Ok(_), None) => {}
            (Err(error), Some((_, words))) => {
                let told = error.to_string();
                assert!(told.contains(words), "{name}: {told}");
                continue;
            }
            (done, _) => panic!("{name}: {:?}", done.map(|d| d.explain())),
        }
        let graph = after.model.proto.graph.as_ref().unwrap();
        let sites = inspect(&before.model).unwrap().sites.len();
        let nodes = all_nodes(graph);
        assert_eq!(count(&nodes, "GroupQueryAttention"), sites, "{name}");
        assert_eq!(
            graph.input,
            before.model.proto.graph.as_ref().unwrap().input
        );
        let found = compared(&before, &after, in_ort(tolerance(&before)));
        let found = found.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(found.passed(), "{name}: {:e}", found.max_ratio());
        let steps = &found.steps;
        assert!(steps.iter().any(|s| s.past > 0 && s.tokens > 1), "{name}");
        assert!(steps.iter().any(|s| s.batch > 1), "{name}");
        assert_eq!(found.rewritten_cache_bytes, found.original_cache_bytes);
        raised += 1;
    }
    assert!(raised > 30, "only {raised} fixtures were raised");
    let written_elsewhere =
        |name: &&str| !recognised_fixtures().iter().any(|f| f.starts_with(name));
    assert_eq!(
        REFUSED.iter().map(|(n, _)| *n).find(written_elsewhere),
        None
    );
}

/// Latents in the operator: at full rank nothing is lost, and at half of it the result is that of standard operators.
#[test]
fn latents_go_into_the_operator_as_they_do_from_genai() {
    for name in [
        "dynamo18-llama",
        "dynamo23-llama-gqa",
        "optimum-gemma2",
        "optimum-qwen3",
    ] {
        for form in [&GroupedQuery as &dyn Form, &GROUPED_PROMPT] {
            let before = loaded(name);
            let mut after = loaded(name);
            rewritten(&mut after, with_form(form)).unwrap_or_else(|e| panic!("{name}: {e}"));
            let found = compared(&before, &after, in_ort(SINGLE)).unwrap();
            assert!(found.passed(), "{name}: {:e}", found.max_ratio());
        }
        let half = |form| {
            let mut model = loaded(name);
            let options = RewriteOptions {
                ranks: RankPlan::Ratio(0.5),
                ..with_form(form)
            };
            rewritten(&mut model, options).unwrap();
            model
        };
        let (products, operator) = (half(&Absorbed), half(&GroupedQuery));
        let found = compared(&products, &operator, in_ort(SINGLE)).unwrap();
        assert!(found.passed(), "{name}: {:e}", found.max_ratio());
        let lost = compared(&loaded(name), &operator, in_ort(SINGLE)).unwrap();
        assert!(!lost.passed(), "{name}: half of the rank loses something");
    }
}

/// 8 bits of the heads as they are; 6 and 4 of heads in bases of their own, where RoPE stays in front of the operator.
#[test]
fn heads_of_integers_take_their_bits_a_number() {
    let (place, ids) = (folder(), root().join("fixtures/tokens.json"));
    let names = [
        "dynamo18-llama",
        "optimum-qwen3",
        "dynamo24-llama",
        "dynamo18-llama-mqa",
    ];
    let bits = [("8", 0.1), ("6", 0.15), ("4", 0.4)];
    for (name, (bits, bound)) in names.into_iter().flat_map(|n| bits.map(|b| (n, b))) {
        let (model, out) = (fixture(name), place.path().join(format!("{name}.onnx")));
        let ran = with(&[
            &"rewrite",
            &model,
            &"-o",
            &out,
            &"--keep-heads",
            &"--cache-bits",
            &bits,
            &"--force",
            &"--token-ids",
            &ids,
            &"--length",
            &"64",
            &"--json",
        ]);
        assert_eq!(ran.code, 0, "{name} {bits}: {ran:?}");
        let proof = &ran.json()["validation"]["proof"];
        let bytes = |key: &str| proof[key].as_f64().unwrap();
        let smaller = bytes("original_cache_bytes") * bits.parse::<f64>().unwrap() / 32.0;
        assert_eq!(bytes("rewritten_cache_bytes"), smaller, "{name} {bits}");
        let found = compared(&loaded(name), &model_at(&out), in_ort(bound)).unwrap();
        assert!(
            found.passed() && found.max_ratio() > 1e-5,
            "{name} {bits}: {:e}",
            found.max_ratio()
        );
    }
}

/// Past and present in one buffer that is longer than what it holds, as onnxruntime-genai binds them.
#[test]
fn caches_can_be_longer_than_what_they_hold() {
    let place = folder();
    for name in [
        "dynamo18-llama",
        "optimum-llama",
        "dynamo23-llama",
        "optimum-gemma3",
    ] {
        let out = place.path().join(format!("{name}.onnx"));
        let ran = with(&[
            &"rewrite",
            &fixture(name),
            &"-o",
            &out,
            &"--keep-heads",
            &"--no-validate",
        ]);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let model = fixture(name).join("model.onnx");
        let told = python(include_str!("raised/shared_buffer.py"), &[&model, &out]);
        let largest: f64 = told
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("{name}: {told}"));
        assert!(largest < SINGLE, "{name}: {largest:e}");
    }
}

/// A mask in which some tokens see later ones is not the operator's; a run of both graphs shows it, and nothing is written.
#[test]
fn a_mask_that_is_not_causal_is_refused() {
    let place = folder();
    let mut model = loaded("dynamo18-llama");
    let graph = model.model.proto.graph.as_mut().unwrap();
    let causal = graph.node.iter_mut().find(|n| n.op_type() == "LessOrEqual");
    causal.unwrap().op_type = Some("GreaterOrEqual".to_owned());
    let input = place.path().join("seeing.onnx");
    save(&model, &input).unwrap();
    let out = place.path().join("out.onnx");
    let ran = with(&[&"rewrite", &input, &"-o", &out, &"--keep-heads"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(!Path::new(&out).exists());
}

/// A mask with an axis of queries is whatever the caller makes of it, so that a run with a causal one would show nothing.
#[test]
fn a_mask_input_of_four_axes_is_refused() {
    let mut model = loaded("dynamo23-llama");
    let graph = model.model.proto.graph.as_mut().unwrap();
    let operators = graph.node.iter_mut().filter(|n| n.op_type() == "Attention");
    let mask = operators.map(|n| std::mem::replace(&mut n.input[3], "mask".to_owned()));
    assert!(mask.count() == 2);
    let mut given = graph.input[0].clone();
    given.name = Some("mask".to_owned());
    let sizes = ["s44", "one", "s70", "all"].map(|name| Dimension {
        value: Some(dimension::Value::DimParam(name.to_owned())),
        ..Dimension::default()
    });
    if let Some(type_proto::Value::TensorType(tensor)) =
        given.r#type.as_mut().and_then(|t| t.value.as_mut())
    {
        tensor.elem_type = Some(DataType::Float as i32);
        tensor.shape = Some(TensorShapeProto {
            dim: sizes.to_vec(),
        });
    }
    graph.input.push(given);
    let told = rewritten(&mut model, with_form(&KeptHeads))
        .unwrap_err()
        .to_string();
    assert!(told.contains("depends on the input 'mask'"), "{told}");
}

/// An input that tells the kinds of tokens can make later tokens visible, so that a run with zeros there would show nothing.
#[test]
fn a_mask_that_reads_other_inputs_is_refused() {
    let mut model = loaded("dynamo18-llama");
    let graph = model.model.proto.graph.as_mut().unwrap();
    let given = graph
        .input
        .iter_mut()
        .find(|i| i.name() == "attention_mask");
    given.unwrap().name = Some("token_types".to_owned());
    for node in &mut graph.node {
        for input in node.input.iter_mut().filter(|i| *i == "attention_mask") {
            "token_types".clone_into(input);
        }
    }
    let told = rewritten(&mut model, with_form(&KeptHeads))
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("depends on the input 'token_types'"),
        "{told}"
    );
}
