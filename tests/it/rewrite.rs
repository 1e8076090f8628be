//! The shape of every rewrite: what one layer was, and what stands in its place. The meaning is shown in numerics.rs.

mod integers;

use crate::common::{
    fixture, folder, grouped, loaded, pair, recognised_fixtures, rewritten, rewritten_with, root,
    with,
};
use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::factor::Made;
use gqa2mla_passes::factor::transmla::{Joint as JointMoments, transmla};
use gqa2mla_passes::forms::{GroupedQuery, Join, KeptHeads};
use gqa2mla_passes::graph::text;
use gqa2mla_passes::pipeline::factorize::Wanted;
use gqa2mla_passes::{
    Absorbed, Decoupled, Expanded, Form, Joint, LatentPast, RankPlan, RewriteOptions, SiteView,
    by_weights,
};
use ndarray::Array2;
use std::path::Path;

/// TransMLA's factors of keys and values whose channels are all alike.
fn of_white_rows(
    view: &SiteView,
    wanted: Wanted,
) -> Result<Made, Box<dyn std::error::Error + Send + Sync>> {
    let site = view.site();
    let (n, m) = (
        site.kv_heads * site.key.size,
        site.kv_heads * site.value.size,
    );
    let joint = JointMoments {
        key: &Array2::eye(n),
        value: &Array2::eye(m),
        cross: &Array2::zeros((n, m)),
        kv_heads: site.kv_heads,
        interleaved: false,
    };
    Ok(Made::Decoupled(transmla(&joint, 1, wanted.ranks.value)?))
}

/// The text that a snapshot holds: of the first attention, and of the whole interface.
fn report(name: &str, form: &dyn Form) -> String {
    let mut model = loaded(name);
    let exact = form.is_exact_at_full_rank();
    let options = RewriteOptions {
        form,
        ranks: match exact {
            true => RankPlan::Full,
            false => RankPlan::Ratio(0.5),
        },
        ..RewriteOptions::default()
    };
    let done = match exact {
        true => rewritten(&mut model, options),
        false => rewritten_with(&mut model, options, &mut of_white_rows),
    };
    let done = done.unwrap();
    assert!(done.rejects.is_empty(), "{name}: {:?}", done.rejects);
    done.explain()
}

fn snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// What the operator can hold, in the form that keeps it.
const KEEP_THE_OPERATOR: [&str; 4] = ["genai-gemma2", "genai-llama", "genai-qwen3", "genai-gptoss"];

#[test]
fn every_recognised_fixture_is_rewritten_as_its_snapshot_says() {
    for name in recognised_fixtures() {
        snapshot(&name, &report(&name, &Absorbed));
    }
}

#[test]
fn the_target_gqa_keeps_the_operator_as_its_snapshots_say() {
    for name in KEEP_THE_OPERATOR {
        snapshot(&format!("{name}.gqa"), &report(name, grouped()));
    }
}

/// Products whose place the operator takes: by dynamo, whose mask is read by GatherND; by TorchScript, with a mask that is a sum
/// and a softcap; the standard operator.
const RAISED: [&str; 3] = ["dynamo18-llama", "optimum-gemma2", "dynamo23-llama"];

#[test]
fn the_operator_takes_the_place_of_products_as_its_snapshots_say() {
    for name in RAISED {
        let (before, after) = pair(
            name,
            RewriteOptions {
                form: &KeptHeads,
                ..RewriteOptions::default()
            },
        );
        let lines = |model: &LoadedModel| text::graph(model.model.proto.graph.as_ref().unwrap());
        let (old, new) = (lines(&before), lines(&after));
        let gone = old.iter().filter(|line| !new.contains(line));
        let come = new.iter().filter(|line| !old.contains(line));
        let gone = gone.map(|line| format!("- {line}"));
        let all: Vec<String> = gone.chain(come.map(|line| format!("+ {line}"))).collect();
        snapshot(&format!("{name}.raised"), &all.join("\n"));
    }
}

/// Rotations of every kind: half-split, interleaved on half of each head, the operators, none, one head for all beside
/// channels that are not rotated; a first step that fills a cache in one branch, with later ones in the other; no cache.
const REBUILT: [&str; 8] = [
    "optimum-llama",
    "dynamo18-glm",
    "dynamo23-llama",
    "genai-phi3",
    "optimum-gemma3",
    "merged-llama",
    "dynamo18-deepseek-v3",
    "dynamo18-llama-nocache",
];

#[test]
fn the_expanded_form_rebuilds_and_rotates_as_its_snapshots_say() {
    for name in REBUILT {
        let report = report(name, &Expanded);
        snapshot(&format!("{name}.expanded"), &report);
    }
}

/// One latent of keys and values: with heads that are split after the rotation, in two branches that share their caches, with
/// values wider than keys.
const JOINT: [&str; 4] = ["optimum-llama", "genai-phi3", "merged-llama", "dynamo18-dv"];

#[test]
fn keys_and_values_have_one_latent_as_the_snapshots_say() {
    for name in JOINT {
        snapshot(&format!("{name}.joint"), &report(name, &Joint));
    }
}

/// Scores of past and new tokens in fp32; a constant factor of the keys; a cache that one branch fills first.
const LATENT_PAST: [&str; 3] = ["dynamo18-llama", "optimum-llama", "merged-llama"];

#[test]
fn past_and_new_tokens_stand_side_by_side_as_their_snapshots_say() {
    for name in LATENT_PAST {
        snapshot(&format!("{name}.latent-past"), &report(name, &LatentPast));
    }
}

/// Readers of the past's length before the first attention, by TorchScript and by dynamo, whose first layer alone has them; a
/// form that reads the cache otherwise.
const IN_PLACE: [(&str, &dyn Form); 3] = [
    ("optimum-llama", &Absorbed),
    ("dynamo18-llama", &Absorbed),
    ("dynamo23-llama", &Expanded),
];

#[test]
fn caches_are_written_in_place_as_their_snapshots_say() {
    for (name, form) in IN_PLACE {
        let mut model = loaded(name);
        let options = RewriteOptions {
            form,
            join: Join::InPlace,
            ..RewriteOptions::default()
        };
        let done = rewritten(&mut model, options).unwrap();
        snapshot(&format!("{name}.in-place"), &done.explain());
    }
}

/// A block of the up-projections for every query head: read by products, beside exact new tokens, and by the operator; keys that
/// are rebuilt, with heads that are split before the rotation, and after it.
const PER_HEAD: [(&str, &dyn Form); 5] = [
    ("optimum-llama", &Absorbed),
    ("dynamo18-llama", &LatentPast),
    ("genai-llama", &GroupedQuery),
    ("dynamo23-llama", &Expanded),
    ("genai-phi3", &Expanded),
];

#[test]
fn every_query_head_has_its_own_factors_as_the_snapshots_say() {
    for (name, form) in PER_HEAD {
        let options = RewriteOptions {
            form,
            per_head: true,
            ..RewriteOptions::default()
        };
        let done = rewritten(&mut loaded(name), options).unwrap();
        snapshot(&format!("{name}.per-head"), &done.explain());
    }
}

#[test]
fn the_decoupled_form_is_as_its_snapshot_says() {
    let report = report("dynamo23-llama", &Decoupled);
    snapshot("dynamo23-llama.decoupled", &report);
}

/// A fixture that is recognised no longer would otherwise leave its snapshot behind, and nobody would notice.
#[test]
fn every_snapshot_is_of_a_fixture_that_is_still_recognised() {
    let mut expected = recognised_fixtures();
    expected.extend(KEEP_THE_OPERATOR.iter().map(|name| format!("{name}.gqa")));
    expected.extend(RAISED.iter().map(|name| format!("{name}.raised")));
    expected.extend(REBUILT.iter().map(|name| format!("{name}.expanded")));
    expected.extend(JOINT.iter().map(|name| format!("{name}.joint")));
    expected.extend(integers::snapshots());
    expected.extend(LATENT_PAST.iter().map(|name| format!("{name}.latent-past")));
    expected.extend(PER_HEAD.iter().map(|(name, _)| format!("{name}.per-head")));
    expected.extend(IN_PLACE.iter().map(|(name, _)| format!("{name}.in-place")));
    expected.push("dynamo23-llama.decoupled".to_owned());
    expected.sort();
    let mut there: Vec<String> = std::fs::read_dir(root().join("tests/it/snapshots"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| Some(name.strip_suffix(".snap")?.to_owned()))
        .collect();
    there.sort();
    assert_eq!(there, expected);
}

#[test]
fn the_command_explains_a_rewrite_as_the_library_does() {
    let mut model = loaded("optimum-llama");
    let done = rewritten(&mut model, RewriteOptions::default()).unwrap();
    let explanation = done.explain();
    let place = folder();
    let out = place.path().join("model.onnx");
    let input = fixture("optimum-llama").join("model.onnx");
    let asked: [&dyn AsRef<Path>; 6] = [
        &"rewrite",
        &input,
        &"-o",
        &out,
        &"--no-validate",
        &"--explain",
    ];
    let words = with(&asked).stdout;
    assert!(words.contains(explanation.trim_end()), "{words}");
    let json = with(&[asked.as_slice(), &[&"--json"]].concat()).json();
    assert_eq!(json["explanation"], explanation);
    let json = with(&[&asked[..5], &[&"--json"]].concat()).json();
    assert!(json.get("explanation").is_none());
}
