//! `--per-head`: every query head has its own blocks of w_uk and w_uv, equal at first to those of its KV head.

use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::forms::{AbsorbedPrompt, GROUPED_PROMPT, GroupedQuery, Join, KeptHeads};
use gqa2mla_passes::onnx::TensorProto;
use gqa2mla_passes::{
    Absorbed, Decoupled, Expanded, Form, Joint, LatentPast, RankPlan, RewriteOptions, inspect,
};

use crate::common::{
    HALF, IDS, SEEN, SINGLE, compared, folder, in_ort, loaded, model_at, pair, proved,
    rewrite_fixture, rewritten,
};
use crate::shared_caches::{SHARED, WIDTHS};

/// Exporters and dialects with several query heads per KV head: products and operators, sinks and softcaps, scales of keys, value
/// heads of another size, one KV head, half precision, static caches, branches, and caches with several readers.
const ABSORBED: [&str; 16] = [
    "optimum-llama",
    "optimum-falcon",
    "optimum-granite",
    "merged-llama",
    "dynamo18-llama",
    "dynamo18-llama-fp16",
    "dynamo18-llama-nocache",
    "dynamo18-dv",
    "dynamo18-gptoss",
    "dynamo23-llama-gqa",
    "genai-llama",
    "genai-gemma2",
    "mobius-llama",
    "static-llama",
    SHARED,
    WIDTHS,
];

/// Rotations of every kind, as in rewrite.rs, and scales and value heads as above.
const EXPANDED: [&str; 13] = [
    "optimum-llama",
    "optimum-falcon",
    "optimum-gemma3",
    "optimum-granite",
    "merged-llama",
    "dynamo18-llama",
    "dynamo18-llama-fp16",
    "dynamo18-llama-nocache",
    "dynamo18-dv",
    "dynamo18-glm",
    "dynamo23-llama",
    "genai-phi3",
    "genai-gptoss",
];

/// With the operator, and with new tokens as they are.
const OTHERS: [(&str, &dyn Form); 11] = [
    ("optimum-llama", &Joint),
    ("genai-phi3", &Joint),
    ("merged-llama", &Joint),
    ("genai-llama", &GroupedQuery),
    ("genai-gptoss", &GroupedQuery),
    ("genai-llama", &GROUPED_PROMPT),
    ("optimum-llama", &LatentPast),
    ("merged-llama", &LatentPast),
    (SHARED, &LatentPast),
    ("optimum-llama", &AbsorbedPrompt),
    ("dynamo18-dv", &AbsorbedPrompt),
];

fn cases() -> Vec<(&'static str, &'static dyn Form)> {
    let absorbed = ABSORBED.map(|name| (name, &Absorbed as &dyn Form));
    let expanded = EXPANDED.map(|name| (name, &Expanded as &dyn Form));
    [&absorbed[..], &expanded, &OTHERS].concat()
}

fn tolerance(name: &str) -> f64 {
    match name.contains("fp16") {
        true => HALF,
        false => SINGLE,
    }
}

fn per_head(form: &dyn Form) -> RewriteOptions<'_> {
    RewriteOptions {
        form,
        per_head: true,
        ..RewriteOptions::default()
    }
}

/// The up-projections of keys and of values.
fn up_projections(model: &LoadedModel) -> Vec<&TensorProto> {
    let graph = model.model.proto.graph.as_ref().unwrap();
    let up = |t: &&TensorProto| t.name().contains("w_uk") || t.name().contains("w_uv");
    graph.initializer.iter().filter(up).collect()
}

#[test]
fn at_full_rank_nothing_is_lost() {
    for (name, form) in cases() {
        let (before, after) = pair(name, per_head(form));
        proved(name, (&before, &after), tolerance(name));
    }
}

#[test]
fn at_half_the_rank_the_model_is_the_one_without_it() {
    for (name, form) in cases() {
        let half = RewriteOptions {
            ranks: RankPlan::Ratio(0.5),
            ..per_head(form)
        };
        let (before, after) = pair(name, half.clone());
        let by_group = RewriteOptions {
            per_head: false,
            ..half
        };
        let (_, without) = pair(name, by_group);
        let found = proved(name, (&without, &after), tolerance(name));
        assert_eq!(found.original_cache_bytes, found.rewritten_cache_bytes);
        let lost = compared(&before, &after, in_ort(SINGLE)).unwrap();
        assert!(lost.max_ratio() > SEEN, "{name}, {form:?}");
    }
}

#[test]
fn caches_are_written_in_place() {
    for (name, form) in [
        ("optimum-llama", &Absorbed as &dyn Form),
        ("dynamo18-llama", &Absorbed),
        ("static-llama", &Absorbed),
        (SHARED, &Absorbed),
        ("optimum-llama", &Expanded),
        ("dynamo23-llama", &Expanded),
        ("genai-phi3", &Expanded),
        ("optimum-llama", &Joint),
        ("genai-phi3", &Joint),
    ] {
        let options = RewriteOptions {
            join: Join::InPlace,
            ..per_head(form)
        };
        let (before, after) = pair(name, options);
        proved(name, (&before, &after), SINGLE);
    }
}

/// Otherwise training one layer would change the others, also where KV heads have one query head each.
#[test]
fn every_attention_has_its_own_blocks_one_for_each_of_its_query_heads() {
    for (name, form) in cases()
        .into_iter()
        .chain([("dynamo18-llama-mha", &Absorbed as _)])
    {
        let (_, after) = pair(name, per_head(form));
        let sites = inspect(&loaded(name).model).unwrap().sites;
        let layers: std::collections::BTreeSet<usize> = sites.iter().map(|s| s.layer).collect();
        let up = up_projections(&after);
        assert_eq!(up.len(), 2 * layers.len(), "{name}, {form:?}");
        for tensor in up {
            assert!(tensor.name().contains("/mla/w_u"), "{}", tensor.name());
            // Keys of heads that are split after the rotation have their blocks side by side.
            let heads = match tensor.dims.len() {
                2 => tensor.dims[1] / sites[0].key.size as i64,
                _ => tensor.dims[0],
            };
            assert_eq!(heads, sites[0].heads as i64, "{name}, {form:?}");
        }
    }
}

/// Sets the elements of the initializer `tensor` to zero whose index is not `kept`.
fn cleared(model: &mut LoadedModel, tensor: &str, kept: impl Fn(&[usize]) -> bool) {
    let graph = model.model.proto.graph.as_ref().unwrap();
    let found = graph.initializer.iter().position(|t| t.name() == tensor);
    let at = found.unwrap();
    let bytes = model.model.tensor_bytes(&graph.initializer[at]).unwrap();
    let tensor = &mut model.model.proto.graph.as_mut().unwrap().initializer[at];
    let dims: Vec<usize> = tensor.dims.iter().map(|&d| d as usize).collect();
    let mut bytes = bytes.to_vec();
    for (flat, number) in bytes.chunks_exact_mut(4).enumerate() {
        let mut index = vec![0; dims.len()];
        let mut rest = flat;
        for (axis, size) in dims.iter().enumerate().rev() {
            index[axis] = rest % size;
            rest /= size;
        }
        if !kept(&index) {
            number.fill(0);
        }
    }
    *tensor = TensorProto {
        name: tensor.name.clone(),
        dims: tensor.dims.clone(),
        data_type: tensor.data_type,
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    };
}

/// The weight of the product of layer 0 whose name contains `part`.
fn weight(model: &LoadedModel, part: &str) -> String {
    let graph = model.model.proto.graph.as_ref().unwrap();
    let is_it = |name: &str| name.contains("layers.0/") && name.contains(part);
    let mut nodes = graph.node.iter();
    let product = nodes.find(|n| n.op_type() == "MatMul" && is_it(n.name()));
    product.unwrap().input[1].clone()
}

/// A query head without its block of w_uv has no output, and without its block of w_uk equal scores, as a head without rows of
/// W_O or columns of W_Q.
#[test]
fn each_block_is_that_of_its_own_query_head() {
    let cases: [(&str, &dyn Form, &str); 4] = [
        ("optimum-llama", &Absorbed, "q_proj"),
        ("optimum-llama", &Expanded, "q_proj"),
        ("genai-llama", &GroupedQuery, "qkv_proj"),
        ("genai-llama", &Expanded, "qkv_proj"),
    ];
    for (name, form, queries) in cases {
        let size = inspect(&loaded(name).model).unwrap().sites[0].key.size;
        for head in [0, 2, 5] {
            let of_head = |x: usize| x / size == head;
            for values in [false, true] {
                let (mut before, mut after) = pair(name, per_head(form));
                let up = up_projections(&after);
                let up = up.iter().find(|t| t.name().ends_with("w_uv") == values);
                let up = (up.unwrap().name().to_owned(), up.unwrap().dims.len());
                match up.1 {
                    2 => cleared(&mut after, &up.0, |index| !of_head(index[1])),
                    _ => cleared(&mut after, &up.0, |index| index[0] != head),
                }
                let untouched = compared(&before, &after, in_ort(SINGLE)).unwrap();
                assert!(untouched.max_ratio() > SEEN, "{name}, {form:?}, {head}");
                let (part, axis) = match values {
                    true => ("o_proj", 0),
                    false => (queries, 1),
                };
                let weight = weight(&before, part);
                cleared(&mut before, &weight, |index| !of_head(index[axis]));
                proved(name, (&before, &after), SINGLE);
            }
        }
    }
}

/// The scales of the integers are in every block.
#[test]
fn integers_are_read_by_every_block() {
    let place = folder();
    let cases: [(&str, &[&str]); 3] = [
        ("optimum-llama", &["--cache-bits", "8"]),
        ("genai-llama", &["--cache-bits", "8", "--target", "gqa"]),
        ("genai-llama", &["--cache-bits", "6", "--target", "gqa"]),
    ];
    for (name, bits) in cases {
        let [by_group, by_head] = [&[][..], &["--per-head"]].map(|more| {
            let out = place.path().join(format!("{}.onnx", more.len()));
            let common = [IDS[0], IDS[1], "--reconstruct", "0", "--no-validate"];
            let options = [bits, &common, &["--rank", "16", "--force"], more].concat();
            let ran = rewrite_fixture(&format!("{name}/model.onnx"), &out, &options);
            assert_eq!(ran.code, 0, "{name} {bits:?}: {ran:?}");
            model_at(&out)
        });
        proved(name, (&by_group, &by_head), SINGLE);
        let heads = inspect(&loaded(name).model).unwrap().sites[0].heads;
        let up = up_projections(&by_head);
        assert!(up.iter().all(|t| t.dims[0] == heads as i64), "{name}");
    }
}

/// What is written is found again as what it is, and is not rewritten once more.
#[test]
fn a_rewritten_model_is_latent_already() {
    for (name, form) in [
        ("optimum-llama", &Absorbed as &dyn Form),
        ("optimum-llama", &Expanded),
        ("dynamo23-llama", &Expanded),
    ] {
        let (_, after) = pair(name, per_head(form));
        let found = inspect(&after.model).unwrap();
        assert!(found.sites.is_empty(), "{name}, {form:?}");
        for reject in &found.rejects {
            assert_eq!(reject.reason.code(), "already-latent", "{name}: {reject}");
        }
    }
}

#[test]
fn what_has_no_factors_of_latents_is_refused_with_the_way_out() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let plan = |name: &str, options: &[&str]| {
        let options = [options, &IDS, &["--dry-run"]].concat();
        rewrite_fixture(name, &out, &options)
    };
    let cases: [(&str, &[&str]); 2] = [
        ("genai-llama", &["--keep-heads", "--cache-bits", "8"]),
        (
            "optimum-llama",
            &["--factors", "transmla", "--cache-ratio", "0.5"],
        ),
    ];
    for (name, options) in cases {
        let refused = plan(name, &[options, &["--per-head"]].concat());
        assert_eq!(refused.code, 2, "{refused:?}");
        let named = format!("--per-head does not go with {}", options[0]);
        assert!(refused.stderr.contains(&named), "{refused:?}");
        let way_out = "leave out --per-head";
        assert!(refused.stderr.contains(way_out), "{refused:?}");
        let followed = plan(name, options);
        assert_eq!(followed.code, 0, "{followed:?}");
    }
    for form in [&Decoupled as &dyn Form, &KeptHeads] {
        let bits = match form.keeps_heads() {
            true => gqa2mla_passes::factor::CacheBits::Eight,
            false => Default::default(),
        };
        let options = RewriteOptions {
            bits,
            ..per_head(form)
        };
        let told = rewritten(&mut loaded("genai-llama"), options).unwrap_err();
        let told = told.to_string();
        assert!(told.contains("cannot have factors of their own"), "{told}");
    }
}
