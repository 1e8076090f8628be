//! Merged decoders, whose branches with and without a past must stay one model.

use gqa2mla::files::load::load;
use gqa2mla::files::save::save;
use gqa2mla_passes::graph::is_op;

use super::{half, ids, tune};
use crate::common::{fixture, folder, run};

/// A branch with a past that is made for one token at a time may hide nothing within a run. A rewrite is told before it
/// calibrates.
#[test]
fn a_branch_that_sees_later_tokens_is_not_trained() {
    let place = folder();
    let mut model = load(&fixture("merged-llama")).unwrap();
    let graph = model.model.proto.graph.as_mut().unwrap();
    let attributes = graph.node.iter_mut().flat_map(|n| &mut n.attribute);
    let past = attributes.filter(|a| a.name() == "then_branch");
    for branch in past.filter_map(|a| a.g.as_mut()) {
        let softmax = branch.node.iter().filter(|n| is_op(n, "Softmax"));
        let scores: Vec<String> = softmax.map(|n| n.input[0].clone()).collect();
        let masked = branch.node.iter_mut();
        for mask in masked.filter(|n| n.output.iter().any(|o| scores.contains(o))) {
            assert!(is_op(mask, "Add"), "{mask:?}");
            mask.op_type = Some("Identity".to_owned());
            mask.input.truncate(1);
        }
    }
    let bare = place.path().join("bare.onnx");
    save(&model, &bare).unwrap();
    let out = place.path().join("out.onnx");
    let tuned = tune(&bare, &out, &["--objective", "next-token", "--train", "kv"]);
    let (bare, shown, ids) = (
        bare.display().to_string(),
        out.display().to_string(),
        ids().display().to_string(),
    );
    let distilled = run([
        "rewrite",
        &bare,
        "-o",
        &shown,
        "--cache-ratio",
        "50%",
        "--token-ids",
        &ids,
        "--length",
        "32",
        "--force",
        "--distill",
        "4",
    ]);
    for ran in [&tuned, &distilled] {
        assert_eq!(ran.code, 1, "{ran:?}");
        let told = "bare.onnx: without a past, its branch with a past does not give";
        assert!(ran.stderr.contains(told), "{ran:?}");
        assert!(!ran.stderr.contains("statistics"), "{ran:?}");
    }
    assert!(!out.exists());
}

#[test]
fn of_a_merged_decoder_weights_that_both_branches_read_are_trained() {
    let place = folder();
    let shared = half("merged-llama", place.path(), &[]);
    let mut apart = load(&shared).unwrap();
    let graph = apart.model.proto.graph.as_mut().unwrap();
    let weights = graph.initializer.clone();
    let weights = weights
        .into_iter()
        .filter(|t| t.name().contains("::MatMul_"));
    for weight in weights {
        let own = format!("{}_without_a_past", weight.name());
        let branches = graph.node.iter_mut().flat_map(|n| &mut n.attribute);
        let branch = branches.filter(|a| a.name() == "else_branch");
        for node in branch.flat_map(|a| &mut a.g.as_mut().unwrap().node) {
            for input in node.input.iter_mut().filter(|i| *i == weight.name()) {
                input.clone_from(&own);
            }
        }
        let mut copy = weight;
        copy.name = Some(own);
        graph.initializer.push(copy);
    }
    let copied = place.path().join("apart.onnx");
    save(&apart, &copied).unwrap();
    let teacher = fixture("merged-llama").display().to_string();
    let trained = |model| {
        let out = place.path().join("out.onnx");
        let asked = ["--teacher", &teacher, "--steps", "1", "--train", "layers"];
        let ran = tune(model, &out, &[&asked[..], &["--force"]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json()["tuned"]["tensors"].as_u64().unwrap()
    };
    // Four factors of each of two layers; seven weights of each layer where they are shared.
    assert_eq!((trained(&copied), trained(&shared)), (8, 22));
}
