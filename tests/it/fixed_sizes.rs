//! Models whose inputs have constant sizes, as runtimes of phones and accelerators want them: one batch size, one number of
//! new tokens in every run, and a cache of one number of rows.

use std::fs;
use std::path::Path;

use gqa2mla::files::load::LoadedModel;
use gqa2mla::files::save::save;
use gqa2mla_passes::RankPlan;
use gqa2mla_passes::forms::{Absorbed, GROUPED_PROMPT, KeptHeads};
use gqa2mla_passes::graph::build::int64_vector;
use gqa2mla_passes::graph::is_contrib;
use gqa2mla_passes::onnx::tensor_shape_proto::{Dimension, dimension::Value as Size};
use gqa2mla_passes::onnx::{ModelProto, ValueInfoProto, type_proto::Value};

use crate::common::{
    SEEN, SINGLE, compared, folder, grouped, in_ort, loaded, proved, rewritten_to, with,
};

/// The constant sizes of a model.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    /// New tokens in every run.
    tokens: usize,
    /// Rows of the past.
    past: usize,
    /// Rows of the present, and columns of the mask.
    present: usize,
}

/// One token in each run behind a window of 15 rows, which 16 tokens do not fill.
const STEPS: Sizes = Sizes {
    batch: 1,
    tokens: 1,
    past: 15,
    present: 16,
};
/// Two rows of four tokens behind a window of six, from which tokens fall out.
const CHUNKS: Sizes = Sizes {
    batch: 2,
    tokens: 4,
    past: 6,
    present: 10,
};
/// A buffer that `GroupQueryAttention` writes to.
const BUFFER: Sizes = Sizes {
    batch: 1,
    tokens: 1,
    past: 16,
    present: 16,
};

fn axes(value: &mut ValueInfoProto) -> &mut Vec<Dimension> {
    let kind = value.r#type.as_mut().unwrap().value.as_mut().unwrap();
    match kind {
        Value::TensorType(tensor) => &mut tensor.shape.as_mut().unwrap().dim,
        other => panic!("{other:?}"),
    }
}

/// The fixture with constant sizes of its inputs and outputs.
fn fixed(fixture: &str, sizes: Sizes) -> LoadedModel {
    let mut model = loaded(fixture);
    fix(&mut model.model.proto, sizes);
    model
}

fn fix(model: &mut ModelProto, sizes: Sizes) {
    let graph = model.graph.as_mut().unwrap();
    let values = graph.input.iter_mut().chain(&mut graph.output);
    for value in values.filter(|value| value.name() != "use_cache_branch") {
        let name = value.name().to_owned();
        let is = |part: &str| name.contains(part);
        let (axis, size) = match () {
            () if is("past") => (2, sizes.past),
            () if is("present") => (2, sizes.present),
            () if is("mask") => (1, sizes.present),
            () => (1, sizes.tokens),
        };
        let axes = axes(value);
        for (axis, size) in [(0, sizes.batch), (axis, size)] {
            axes[axis].value = Some(Size::DimValue(i64::try_from(size).unwrap()));
        }
    }
}

/// The runs of both models are the same tokens: of the one in a window that is full of padding at first, of the other in a
/// cache that grows.
#[test]
fn a_window_of_padding_is_fed_as_an_empty_cache() {
    for fixture in [
        "optimum-llama",
        "dynamo18-llama",
        "dynamo23-llama",
        "optimum-qwen3",
    ] {
        let found = proved(fixture, (&fixed(fixture, STEPS), &loaded(fixture)), SINGLE);
        assert!(found.steps.len() > 8, "{fixture}: {found:#?}");
    }
    let name = "genai-llama";
    let found = proved(name, (&fixed(name, BUFFER), &loaded(name)), SINGLE);
    assert!(found.steps.len() > 8, "{found:#?}");
}

#[test]
fn models_of_constant_sizes_are_rewritten_exactly() {
    for sizes in [STEPS, CHUNKS] {
        for fixture in [
            "optimum-llama",
            "dynamo18-llama",
            "optimum-gpt_neox",
            "dynamo23-llama",
        ] {
            let before = fixed(fixture, sizes);
            let after = rewritten_to(&before, &Absorbed, RankPlan::Full);
            proved(fixture, (&before, &after), SINGLE);
            // A loss is seen.
            let half = rewritten_to(&before, &Absorbed, RankPlan::Ratio(0.5));
            let found = compared(&before, &half, in_ort(SINGLE)).unwrap();
            assert!(
                found.max_ratio() > SEEN,
                "{fixture}: {:e}",
                found.max_ratio()
            );
        }
    }
    for form in [grouped(), &KeptHeads] {
        let before = fixed("optimum-llama", STEPS);
        let after = rewritten_to(&before, form, RankPlan::Full);
        proved(form.name(), (&before, &after), SINGLE);
    }
    // The default of the option, which has the operator in a branch, and the other.
    for name in ["genai-llama", "genai-qwen3", "genai-gemma2"] {
        for form in [&GROUPED_PROMPT, grouped()] {
            let before = fixed(name, BUFFER);
            let after = rewritten_to(&before, form, RankPlan::Full);
            proved(name, (&before, &after), SINGLE);
        }
    }
}

#[test]
fn the_target_that_a_refusal_names_is_taken() {
    let place = folder();
    let model = stored(&fixed("genai-llama", BUFFER), place.path());
    let out = place.path().join("out.onnx");
    let ran = with(&[&"rewrite", &model, &"-o", &out, &"--target", &"gqa"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let model = stored(&fixed("optimum-llama", STEPS), place.path());
    for tokens in ["exact", "prompt"] {
        let ran = with(&[
            &"rewrite",
            &model,
            &"-o",
            &out,
            &"--force",
            &"--new-tokens",
            &tokens,
        ]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains("use --new-tokens latent"), "{ran:?}");
    }
}

fn stored(model: &LoadedModel, folder: &Path) -> std::path::PathBuf {
    let path = folder.join("model.onnx");
    save(model, &path).unwrap();
    path
}

#[test]
fn a_text_is_scored_in_runs_of_the_constant_size_and_calibration_tells_the_way_out() {
    let place = folder();
    for sizes in [STEPS, CHUNKS] {
        let model = stored(&fixed("optimum-llama", sizes), place.path());
        let out = place.path().join("half.onnx");
        let ran = with(&[&"rewrite", &model, &"-o", &out, &"--force"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let ids = Path::new("fixtures/tokens.json");
        let text: [&dyn AsRef<Path>; 8] = [
            &"validate",
            &model,
            &out,
            &"--token-ids",
            &ids,
            &"--test-tokens",
            &"30",
            &"--json",
        ];
        let ran = with(&text);
        assert_eq!(ran.code, 0, "{ran:?}");
        let quality = &ran.json()["quality"];
        let kl = quality["mean_kl"].as_f64().unwrap();
        assert!(kl.abs() < 1e-6, "{quality}");

        let ran = with(&[
            &"calibrate",
            &model,
            &"-o",
            &place.path().join("s"),
            &"--token-ids",
            &ids,
        ]);
        assert_eq!(ran.code, 1, "{ran:?}");
        let told = "rewrite the export before its sizes are fixed";
        assert!(ran.stderr.contains(told), "{ran:?}");
    }
}

/// As exports for accelerators feed the operator: the counts are inputs.
#[test]
fn counts_of_tokens_that_an_operator_reads_are_fed_by_its_definition() {
    let mut model = loaded("genai-llama");
    let graph = model.model.proto.graph.as_mut().unwrap();
    let operators = graph.node.iter_mut();
    for node in operators.filter(|node| is_contrib(node, "GroupQueryAttention")) {
        node.input[5] = "past_seq_len".to_owned();
        node.input[6] = "total_seq_len".to_owned();
    }
    let mask = graph
        .input
        .iter()
        .position(|v| v.name() == "attention_mask");
    let mask = graph.input.remove(mask.unwrap());
    // What is computed from the mask is no longer read.
    let mut gone = vec!["attention_mask".to_owned()];
    graph.node.retain(|node| {
        let kept = !node.input.iter().any(|input| gone.contains(input));
        if !kept {
            gone.extend(node.output.iter().cloned());
        }
        kept
    });
    for (name, rank) in [("past_seq_len", 1), ("total_seq_len", 0)] {
        let mut count = mask.clone();
        count.name = Some(name.to_owned());
        let Some(Value::TensorType(tensor)) = &mut count.r#type.as_mut().unwrap().value else {
            panic!("{count:?}")
        };
        tensor.elem_type = Some(6);
        tensor.shape.as_mut().unwrap().dim.truncate(rank);
        graph.input.push(count);
    }
    let found = proved("counts", (&model, &loaded("genai-llama")), SINGLE);
    assert!(found.steps.len() > 4, "{found:#?}");
}

#[test]
fn the_faster_target_is_found_of_a_window() {
    let place = folder();
    let model = stored(&fixed("optimum-llama", STEPS), place.path());
    let out = place.path().join("out.onnx");
    let ran = with(&[&"rewrite", &model, &"-o", &out, &"--target", &"auto"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(out.exists());
}

#[test]
fn a_bench_of_a_window_runs_its_own_number_of_tokens() {
    let place = folder();
    let model = stored(&fixed("optimum-llama", STEPS), place.path());
    let out = place.path().join("out.json");
    let ran = with(&[
        &"bench",
        &model,
        &"--past",
        &"8",
        &"--prefill",
        &"none",
        &"--rounds",
        &"1",
        &"--json",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    fs::write(&out, &ran.stdout).unwrap();
    let ran = with(&[&"bench", &model, &"--prefill", &"32", &"--rounds", &"1"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.stderr
            .contains("reads 1 tokens in every run, not 32: give --prefill none"),
        "{ran:?}"
    );
}

/// What the file declares is checked before anything of that size is made.
#[test]
fn enormous_constant_sizes_are_refused() {
    let place = folder();
    for sizes in [
        Sizes {
            past: 1 << 40,
            present: (1 << 40) + 1,
            ..STEPS
        },
        Sizes {
            batch: 1 << 40,
            ..STEPS
        },
        Sizes {
            tokens: 1 << 40,
            present: (1 << 40) + 6,
            ..CHUNKS
        },
    ] {
        let model = stored(&fixed("optimum-llama", sizes), place.path());
        let out = place.path().join("out.onnx");
        let ran = with(&[&"rewrite", &model, &"-o", &out]);
        assert!([1, 3].contains(&ran.code), "{sizes:?}: {ran:?}");
        let told = ["too large", "nothing to rewrite"];
        let told = told.iter().any(|what| ran.stderr.contains(what));
        assert!(told, "{sizes:?}: {ran:?}");
        assert!(!out.exists());
    }
}

#[test]
fn a_window_without_a_mask_is_not_guessed() {
    let mut model = fixed("dynamo18-llama", STEPS);
    let graph = model.model.proto.graph.as_mut().unwrap();
    let mask = graph
        .input
        .iter()
        .find(|v| v.name().contains("mask"))
        .unwrap();
    // The mask becomes a weight.
    let mut ones = int64_vector("attention_mask", &[1; 16]);
    ones.dims = vec![1, 16];
    assert_eq!(mask.name(), "attention_mask");
    graph.input.retain(|v| v.name() != "attention_mask");
    graph.initializer.push(ones);
    let place = folder();
    let path = stored(&model, place.path());
    let out = place.path().join("out.onnx");
    let ran = with(&[&"rewrite", &path, &"-o", &out]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("no mask that hides"), "{ran:?}");
}

#[test]
fn what_a_constant_past_excludes_is_refused_with_a_way_out() {
    let place = folder();
    let out = place.path().join("out.onnx");
    let model = stored(&fixed("genai-llama", BUFFER), place.path());
    let ran = with(&[&"rewrite", &model, &"-o", &out]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.stderr.contains("16 rows") && ran.stderr.contains("--target gqa"),
        "{ran:?}"
    );
    let model = stored(&fixed("optimum-llama", STEPS), place.path());
    let ran = with(&[&"rewrite", &model, &"-o", &out, &"--form", &"expanded"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.stderr.contains("15 rows") && ran.stderr.contains("form absorbed"),
        "{ran:?}"
    );
    let ran = with(&[&"rewrite", &model, &"-o", &out, &"--cache-io", &"inplace"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.stderr.contains("15 rows") && ran.stderr.contains("--cache-io append"),
        "{ran:?}"
    );
}

#[test]
fn a_merged_decoder_with_a_window_takes_the_branch_with_a_past() {
    let before = fixed("merged-llama", STEPS);
    let after = rewritten_to(&before, &Absorbed, RankPlan::Full);
    proved("merged-llama", (&before, &after), SINGLE);
}

#[test]
fn several_tokens_of_several_rows_keep_their_products() {
    let place = folder();
    let model = stored(&fixed("optimum-llama", CHUNKS), place.path());
    let out = place.path().join("out.onnx");
    let ran = with(&[&"rewrite", &model, &"-o", &out, &"--target", &"gqa"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("use the target matmul"), "{ran:?}");
    let ran = with(&[&"rewrite", &model, &"-o", &out, &"--target", &"auto"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("target matmul"), "{ran:?}");
}
