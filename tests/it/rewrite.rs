//! The shape of every rewrite: what one layer was, and what stands in its place. The meaning is shown in numerics.rs.

use std::collections::HashSet;

use crate::common::{all_nodes, loaded, recognised_fixtures, rewritten, rewritten_with, root};
use gqa2mla::files::load::LoadedModel;
use gqa2mla_passes::factor::Made;
use gqa2mla_passes::factor::transmla::{Joint, transmla};
use gqa2mla_passes::graph::{subgraphs, text};
use gqa2mla_passes::onnx::{GraphProto, NodeProto, ValueInfoProto};
use gqa2mla_passes::operators::Target;
use gqa2mla_passes::pipeline::changes::RewrittenSite;
use gqa2mla_passes::recognize::site::{Dialect, Site};
use gqa2mla_passes::{LatentForm, Layer, RankPlan, RewriteOptions};
use ndarray::Array2;

fn graph(model: &LoadedModel) -> &GraphProto {
    model.model.proto.graph.as_ref().unwrap()
}

/// The nodes of `site` from its caches to its two products; an operator that is attention has no such nodes.
fn matched(nodes: &[&NodeProto], site: &Site) -> Vec<String> {
    let made_on_the_way = |node: &NodeProto, side: &gqa2mla_passes::recognize::site::Side| {
        let cached = side.cache.is_some();
        let path = side.path.iter().skip(usize::from(!cached));
        path.clone().any(|value| node.output.contains(value))
    };
    let product = |node: &NodeProto, left: &str, path: &[String]| {
        node.op_type() == "MatMul" && node.input == [left, path.last().unwrap()]
    };
    let belongs = |node: &NodeProto| {
        made_on_the_way(node, &site.key)
            || made_on_the_way(node, &site.value)
            || product(node, &site.query, &site.key.path)
            || product(node, &site.probabilities, &site.value.path)
    };
    nodes
        .iter()
        .filter(|n| belongs(n))
        .map(|n| text::node(n))
        .collect()
}

/// Every node as a line, apart from those that hold graphs: their nodes have lines of their own.
fn lines_of(graph: &GraphProto) -> Vec<String> {
    let plain = |n: &&&NodeProto| subgraphs(n).next().is_none();
    all_nodes(graph)
        .iter()
        .filter(plain)
        .map(|n| text::node(n))
        .collect()
}

/// Lines of `all` that are not in `other`.
fn without(all: &[String], other: &[String]) -> Vec<String> {
    let other: HashSet<&String> = other.iter().collect();
    all.iter()
        .filter(|line| !other.contains(line))
        .cloned()
        .collect()
}

/// The lines up to the first that holds `part`, and that one.
fn up_to(lines: &[String], part: &str) -> Vec<String> {
    let last = lines.iter().position(|l| l.contains(part)).unwrap();
    lines[..=last].to_vec()
}

fn interface(before: &GraphProto, after: &GraphProto) -> Vec<String> {
    let changes =
        |kind: &str, before: &[ValueInfoProto], after: &[ValueInfoProto]| -> Vec<String> {
            assert_eq!(before.len(), after.len(), "the number of {kind}s changed");
            let pairs = before.iter().zip(after).filter(|(b, a)| b != a);
            pairs
                .map(|(b, a)| {
                    let now = text::value(a);
                    let (name, kind_of_value) = now.split_once(": ").unwrap();
                    assert_eq!(name, b.name(), "an {kind} has another name");
                    format!("{kind} {} -> {kind_of_value}", text::value(b))
                })
                .collect()
        };
    let mut lines = changes("input", &before.input, &after.input);
    lines.extend(changes("output", &before.output, &after.output));
    lines
}

/// TransMLA's factors of keys and values whose channels are all alike.
fn of_white_rows(layer: &Layer) -> Result<Made, Box<dyn std::error::Error + Send + Sync>> {
    let site = layer.site;
    let (n, m) = (
        site.kv_heads * site.key.size,
        site.kv_heads * site.value.size,
    );
    let joint = Joint {
        key: &Array2::eye(n),
        value: &Array2::eye(m),
        cross: &Array2::zeros((n, m)),
        kv_heads: site.kv_heads,
        interleaved: false,
    };
    Ok(Made::Decoupled(transmla(&joint, 1, layer.ranks.value)?))
}

/// The report that a snapshot holds: of layer 0, and of the whole interface.
fn report(name: &str, target: Target, form: LatentForm) -> String {
    let before = loaded(name);
    let mut after = loaded(name);
    let options = RewriteOptions {
        target,
        form,
        ranks: match form {
            LatentForm::Decoupled => RankPlan::Ratio(0.5),
            _ => RankPlan::Full,
        },
        ..RewriteOptions::default()
    };
    let done = match form {
        LatentForm::Decoupled => rewritten_with(&mut after, options, &mut of_white_rows),
        _ => rewritten(&mut after, options),
    };
    let done = done.unwrap();
    assert!(done.rejects.is_empty(), "{name}: {:?}", done.rejects);
    let RewrittenSite { site, ranks, .. } = &done.sites[0];

    let old = lines_of(graph(&before));
    let new = lines_of(graph(&after));
    let (gone, made) = (without(&old, &new), without(&new, &old));
    let initializers = |model: &LoadedModel| -> Vec<String> {
        graph(model)
            .initializer
            .iter()
            .map(text::initializer)
            .collect()
    };
    let tensors = without(&initializers(&after), &initializers(&before));

    // Whatever is new says of which attention it is.
    let prefixes: Vec<String> = tensors
        .iter()
        .filter_map(|line| Some(line.split_once("/w_uv: ")?.0.to_owned()))
        .collect();
    let of_another = |line: &&String| {
        let others = prefixes.iter().skip(1);
        // An operator's own nodes are named after it, its score product after that.
        let mut places = others.map(|p| p.trim_end_matches("/mla").trim_end_matches("/score"));
        places.any(|place| line.contains(place))
    };
    let of_layer = |lines: &[String]| -> Vec<String> {
        lines.iter().filter(|l| !of_another(l)).cloned().collect()
    };
    let opsets: Vec<String> = before
        .model
        .proto
        .opset_import
        .iter()
        .map(|o| {
            format!(
                "{} {}",
                if o.domain().is_empty() {
                    "ai.onnx"
                } else {
                    o.domain()
                },
                o.version()
            )
        })
        .collect();
    let matched = match site.dialect {
        Dialect::MATMUL => matched(&all_nodes(graph(&before)), site),
        dialect => up_to(&gone, &format!("{}(", dialect.name())),
    };
    let sections = [
        (
            "MODEL",
            vec![
                format!("{name}, {}", opsets.join(", ")),
                format!(
                    "{} attentions, layer 0: H={} G={} d={} dv={}, {}, {}",
                    done.sites.len(),
                    site.heads,
                    site.kv_heads,
                    site.key.size,
                    site.value.size,
                    text::type_name(site.elem_type),
                    site.dialect.name()
                ),
            ],
        ),
        ("BEFORE", matched),
        (
            "PLAN",
            vec![format!(
                "rank {} of {}, target {target:?}{}, key scale {}, value scale {}",
                ranks.key,
                site.full_rank(),
                match form {
                    LatentForm::Absorbed => "",
                    LatentForm::Expanded => ", expanded",
                    LatentForm::Decoupled => ", decoupled",
                },
                site.key.scale,
                site.value.scale
            )],
        ),
        ("AFTER", of_layer(&made)),
        ("INITIALIZERS", of_layer(&tensors)),
        ("INTERFACE", interface(graph(&before), graph(&after))),
    ];
    let mut text = String::new();
    for (title, lines) in sections {
        text.push_str(&format!("{title}\n"));
        lines
            .iter()
            .for_each(|line| text.push_str(&format!("  {line}\n")));
    }
    text
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
        snapshot(&name, &report(&name, Target::MatMul, LatentForm::Absorbed));
    }
}

#[test]
fn the_target_gqa_keeps_the_operator_as_its_snapshots_say() {
    for name in KEEP_THE_OPERATOR {
        snapshot(
            &format!("{name}.gqa"),
            &report(name, Target::Gqa, LatentForm::Absorbed),
        );
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
        let report = report(name, Target::MatMul, LatentForm::Expanded);
        snapshot(&format!("{name}.expanded"), &report);
    }
}

#[test]
fn the_decoupled_form_is_as_its_snapshot_says() {
    let report = report("dynamo23-llama", Target::MatMul, LatentForm::Decoupled);
    snapshot("dynamo23-llama.decoupled", &report);
}

/// A fixture that is recognised no longer would otherwise leave its snapshot behind, and nobody would notice.
#[test]
fn every_snapshot_is_of_a_fixture_that_is_still_recognised() {
    let mut expected = recognised_fixtures();
    expected.extend(KEEP_THE_OPERATOR.iter().map(|name| format!("{name}.gqa")));
    expected.extend(REBUILT.iter().map(|name| format!("{name}.expanded")));
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
