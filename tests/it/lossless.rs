//! A rewrite without options caches no more than the directions that keys and values take, and says why.

use crate::common::{SEEN, SINGLE, compared, fixture, folder, in_ort, loaded, rewritten, with};
use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::factor::Ranks;
use gqa2mla_passes::forms::RankPlan;
use gqa2mla_passes::graph::build::{int64_vector, node};
use gqa2mla_passes::{RewriteOptions, inspect};

/// `dynamo18-llama-mha` (G = 4, d = 16) with the rows of its heads gathered in `order` before they are cached.
fn repeated(order: &[i64]) -> LoadedModel {
    let mut model = loaded("dynamo18-llama-mha");
    let graph = model.model.proto.graph.as_mut().unwrap();
    graph.initializer.push(int64_vector("order", order));
    let mut at = 0;
    while at < graph.node.len() {
        let append = &mut graph.node[at];
        let grows = append.op_type() == "Concat" && append.input[0].starts_with("past_key_values");
        if grows {
            let rows = std::mem::replace(&mut append.input[1], format!("repeated_{at}"));
            let made = append.input[1].clone();
            let gather = node("Gather", &made, &[&rows, "order"], &[&made]);
            graph.node.insert(at, gather.with_int("axis", 1));
            at += 1;
        }
        at += 1;
    }
    model
}

/// The ranks that a rewrite without options gives the first attention, after the rewritten model was seen to compute the same.
fn exact_ranks(model: &LoadedModel) -> Ranks {
    let mut after = model.clone();
    let done = rewritten(&mut after, RewriteOptions::default()).unwrap();
    let found = compared(model, &after, in_ort(SINGLE)).unwrap();
    assert!(found.passed(), "{:e}", found.max_ratio());
    done.sites[0].ranks
}

#[test]
fn heads_that_are_repeated_before_they_are_cached_are_cached_once() {
    let ranks = |key, value| Ranks { key, value };
    // Its values are 64 channels made of 40 numbers, its keys are rotated afterwards.
    assert_eq!(exact_ranks(&repeated(&[0, 1, 2, 3])), ranks(64, 40));
    assert_eq!(exact_ranks(&repeated(&[0, 0, 2, 2])), ranks(32, 32));
    assert_eq!(exact_ranks(&repeated(&[1, -1, 1, 3])), ranks(32, 32));
    assert_eq!(exact_ranks(&repeated(&[2, 2, 2, 2])), ranks(16, 16));
}

/// 4 heads of 16 + 8 channels: 16 are made of 16 latent numbers, 8 are rotated and shared by all heads; values of the same
/// latent numbers.
#[test]
fn the_latents_that_deepseek_is_made_of_are_found_in_its_unpacked_cache() {
    let before = loaded("dynamo18-deepseek-v3");
    let ranks = exact_ranks(&before);
    assert_eq!((ranks.key, ranks.value), (24, 16));
    let id = {
        let mut after = before.clone();
        rewritten(&mut after, RewriteOptions::default())
            .unwrap()
            .sites[0]
            .id
            .clone()
    };
    for (key, value) in [(23, 16), (24, 15)] {
        let mut after = before.clone();
        let options = RewriteOptions {
            ranks: RankPlan::Each([(id.clone(), Ranks { key, value })].into()),
            ..RewriteOptions::default()
        };
        rewritten(&mut after, options).unwrap();
        let found = compared(&before, &after, in_ort(SINGLE)).unwrap();
        assert!(found.max_ratio() > SEEN, "{:e}", found.max_ratio());
    }
}

#[test]
fn the_command_says_which_ranks_lose_nothing_and_why() {
    let place = folder();
    let out = place.path().join("model.onnx");
    let ran = with(&[&"rewrite", &fixture("dynamo18-deepseek-v3"), &"-o", &out]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for line in [
        "ranks 16 to 24, target matmul: exact",
        "keys: rank 24 of 96 loses nothing: heads share channels, and are projected from fewer numbers than they hold",
        "values: rank 16 of 64 loses nothing: heads are projected from fewer numbers than they hold",
        "cache: 1,280 -> 320 bytes a token (25.0%)",
    ] {
        assert!(ran.stdout.contains(line), "{line}: {}", ran.stdout);
    }
}

/// In half precision a product with a basis would round once more.
#[test]
fn half_precision_takes_copies_alone() {
    let sites = inspect(&loaded("dynamo18-llama-fp16").model).unwrap().sites;
    let whole = |s: &gqa2mla_passes::recognize::site::Site| {
        s.key.rank == s.kv_heads * s.key.size && s.value.rank == s.kv_heads * s.value.size
    };
    assert!(sites.iter().all(whole));
}
