//! Breaks exports in hundreds of ways. Each broken model is refused, or its rewrite still computes the same numbers, or it
//! does not run even before: a silent wrong answer is what must never happen.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs
)]

use std::collections::BTreeMap;
use std::path::Path;

use gqa2mla::model::load::{LoadedModel, load};
use gqa2mla::model::save::save;
use gqa2mla::ports::subject;
use gqa2mla::runtime::{RuntimeKind, RuntimeOptions, Session, open};
use gqa2mla::validate::{ValidateOptions, validate};
use gqa2mla_passes::graph::build::node;
use gqa2mla_passes::onnx::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType};
use gqa2mla_passes::{RewriteOptions, rewrite};

/// Largest logit difference of an exact rewrite in fp32, relative to the largest logit: rounding is 1e-6, and every
/// mutation that means something moves logits by more than 1e-3.
const TOLERANCE: f64 = 2e-5;

const BASES: [&str; 4] = [
    "dynamo18-llama",
    "optimum-llama",
    "dynamo23-llama-gqa",
    "genai-llama",
];

/// What became of a mutated model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Refused,
    Exact,
    /// ONNX Runtime does not run the mutated original either.
    Broken,
}

fn base(name: &str) -> LoadedModel {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name);
    load(&path).unwrap()
}

fn session(path: &Path) -> Result<Box<dyn Session>, String> {
    let options = RuntimeOptions {
        runtime: RuntimeKind::Ort,
        threads: 1,
        ..RuntimeOptions::default()
    };
    open(path, &options).map_err(|e| e.to_string())
}

/// Rewrites `model` and compares both in ONNX Runtime.
fn fate(model: LoadedModel, what: &str) -> Fate {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original.onnx");
    save(&model, &original).unwrap();
    let before = subject(&model.model.proto).unwrap();
    let mut changed = load(&original).unwrap();
    let done = rewrite(
        &mut changed.model,
        RewriteOptions::default(),
        &mut |tensor| Ok(tensor),
        &mut |_, _| {},
    );
    if done.is_err() {
        return Fate::Refused;
    }
    let Ok(mut first) = session(&original) else {
        return Fate::Broken;
    };
    let rewritten = folder.path().join("rewritten.onnx");
    save(&changed, &rewritten).unwrap();
    let after = subject(&changed.model.proto).unwrap();
    let mut second =
        session(&rewritten).unwrap_or_else(|e| panic!("{what}: the rewrite does not load: {e}"));
    let options = ValidateOptions {
        vocabulary: before.vocabulary,
        tokens: None,
        seed: 1,
        right_padded_only: before.right_padded_only,
        tolerance: Some(TOLERANCE),
    };
    let compared = validate(
        first.as_mut(),
        second.as_mut(),
        &before.interface,
        &after.interface,
        &options,
        &mut |_, _| {},
    );
    match compared {
        Ok(comparison) => {
            assert!(
                comparison.passed(),
                "{what}: rewritten without a word, and the logits differ by {:e} of the largest",
                comparison.max_ratio()
            );
            Fate::Exact
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains("original model failed"),
                "{what}: only the rewrite fails: {text}"
            );
            Fate::Broken
        }
    }
}

fn graph(model: &mut LoadedModel) -> &mut GraphProto {
    model.model.proto.graph.as_mut().unwrap()
}

fn find(graph: &GraphProto, op: &str, number: usize) -> usize {
    let found = graph
        .node
        .iter()
        .enumerate()
        .filter(|(_, n)| n.op_type() == op);
    found
        .map(|(i, _)| i)
        .nth(number)
        .unwrap_or_else(|| panic!("no {op} number {number}"))
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.to_vec(),
        data_type: Some(DataType::Float as i32),
        raw_data: Some(
            values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
                .into(),
        ),
        ..TensorProto::default()
    }
}

fn integers(name: &str, values: &[i64]) -> TensorProto {
    gqa2mla_passes::graph::build::int64_vector(name, values)
}

/// The nodes of layer 0 of `dynamo18-llama` that mutations change, by what they are for.
struct Places {
    score: usize,
    product: usize,
    softmax: usize,
    key_concat: usize,
    value_concat: usize,
}

fn places(graph: &GraphProto) -> Places {
    let softmax = find(graph, "Softmax", 0);
    let product = (softmax..graph.node.len())
        .find(|&i| graph.node[i].op_type() == "MatMul")
        .unwrap();
    let score = (0..softmax)
        .rev()
        .find(|&i| graph.node[i].op_type() == "MatMul")
        .unwrap();
    let made = |value: &str| {
        graph
            .node
            .iter()
            .position(|n| n.output.iter().any(|o| o == value))
            .unwrap()
    };
    Places {
        score,
        product,
        softmax,
        key_concat: made("present.0.key"),
        value_concat: made("present.0.value"),
    }
}

/// Puts `new` in front of node `at` and lets input `input` of that node read `value`.
fn insert(graph: &mut GraphProto, at: usize, input: usize, new: Vec<NodeProto>, value: &str) {
    graph.node[at].input[input] = value.to_owned();
    graph.node.splice(at..at, new);
}

/// A deliberate change of `dynamo18-llama`, and what has to become of it.
type Mutation = (&'static str, fn(&mut GraphProto, &Places), Fate);

fn wrap(
    graph: &mut GraphProto,
    at: usize,
    input: usize,
    op: &str,
    extra: Option<TensorProto>,
    change: impl FnOnce(NodeProto) -> NodeProto,
) {
    let old = graph.node[at].input[input].clone();
    let name = format!("mutated_{at}_{input}");
    let mut inputs = vec![old.as_str()];
    if let Some(tensor) = &extra {
        inputs.push(tensor.name());
    }
    let new = change(node(op, &name, &inputs, &[&name]));
    graph.initializer.extend(extra.clone());
    insert(graph, at, input, vec![new], &name);
}

fn mutations() -> Vec<Mutation> {
    use Fate::{Exact, Refused};
    vec![
        (
            "one head of the key has another scale",
            |g, p| {
                wrap(
                    g,
                    p.score,
                    1,
                    "Mul",
                    Some(floats(
                        "s",
                        &[1, 8, 1, 1],
                        &[1., 1., 1., 2., 1., 1., 1., 1.],
                    )),
                    |n| n,
                );
            },
            Refused,
        ),
        (
            "one head of the value has another scale",
            |g, p| {
                wrap(
                    g,
                    p.product,
                    1,
                    "Mul",
                    Some(floats(
                        "s",
                        &[1, 8, 1, 1],
                        &[1., 1., 1., 2., 1., 1., 1., 1.],
                    )),
                    |n| n,
                );
            },
            Refused,
        ),
        (
            "the heads of the key are permuted",
            |g, p| {
                wrap(
                    g,
                    p.score,
                    1,
                    "Gather",
                    Some(integers("i", &[0, 1, 2, 4, 3, 5, 6, 7])),
                    |n| n.with_int("axis", 1),
                );
            },
            Refused,
        ),
        (
            "the heads of the value are reversed",
            |g, p| {
                wrap(
                    g,
                    p.product,
                    1,
                    "Gather",
                    Some(integers("i", &[7, 6, 5, 4, 3, 2, 1, 0])),
                    |n| n.with_int("axis", 1),
                );
            },
            Refused,
        ),
        (
            "the heads of the key are gathered in order",
            |g, p| {
                wrap(
                    g,
                    p.score,
                    1,
                    "Gather",
                    Some(integers("i", &[0, 1, 2, 3, 4, 5, 6, 7])),
                    |n| n.with_int("axis", 1),
                );
            },
            Exact,
        ),
        (
            "the key passes a tanh",
            |g, p| wrap(g, p.score, 1, "Tanh", None, |n| n),
            Refused,
        ),
        (
            "the value passes a tanh",
            |g, p| wrap(g, p.product, 1, "Tanh", None, |n| n),
            Refused,
        ),
        (
            "the key is negated",
            |g, p| wrap(g, p.score, 1, "Neg", None, |n| n),
            Refused,
        ),
        (
            "a constant is added to the key",
            |g, p| wrap(g, p.score, 1, "Add", Some(floats("c", &[1], &[0.5])), |n| n),
            Refused,
        ),
        (
            "the key is doubled",
            |g, p| wrap(g, p.score, 1, "Mul", Some(floats("c", &[1], &[2.])), |n| n),
            Exact,
        ),
        (
            "the value is halved by division",
            |g, p| wrap(g, p.product, 1, "Div", Some(floats("c", &[], &[2.])), |n| n),
            Exact,
        ),
        (
            "the query passes a tanh",
            |g, p| wrap(g, p.score, 0, "Tanh", None, |n| n),
            Exact,
        ),
        (
            "the probabilities are squared",
            |g, p| {
                let value = g.node[p.product].input[0].clone();
                let new = node("Mul", "squared", &[&value, &value], &["squared"]);
                insert(g, p.product, 0, vec![new], "squared");
            },
            Exact,
        ),
        (
            "the softmax runs over the queries",
            |g, p| {
                let axis = g.node[p.softmax]
                    .attribute
                    .iter_mut()
                    .find(|a| a.name() == "axis")
                    .unwrap();
                axis.i = Some(2);
            },
            Exact,
        ),
        (
            "keys and values are exchanged behind the cache",
            |g, p| {
                let chain = |g: &GraphProto, of: &str| {
                    g.node
                        .iter()
                        .position(|n| n.op_type() == "Unsqueeze" && n.input[0] == of)
                        .unwrap()
                };
                let (k, v) = (chain(g, "present.0.key"), chain(g, "present.0.value"));
                let _ = p;
                g.node[k].input[0] = "present.0.value".to_owned();
                g.node[v].input[0] = "present.0.key".to_owned();
                // Each product is proved by itself, so it is the cache that goes by the other name, and nothing else changes.
            },
            Exact,
        ),
        (
            "both products read the keys",
            |g, p| {
                let _ = p;
                let v = g
                    .node
                    .iter()
                    .position(|n| n.op_type() == "Unsqueeze" && n.input[0] == "present.0.value")
                    .unwrap();
                g.node[v].input[0] = "present.0.key".to_owned();
            },
            Refused,
        ),
        (
            "the new key stands in front of the past",
            |g, p| g.node[p.key_concat].input.swap(0, 1),
            Refused,
        ),
        (
            "the new value stands in front of the past",
            |g, p| g.node[p.value_concat].input.swap(0, 1),
            Refused,
        ),
        (
            "the cache is read a second time",
            |g, p| {
                let _ = p;
                let new = node("ReduceSum", "total", &["present.0.key"], &["total"])
                    .with_int("keepdims", 0);
                let logits = g
                    .node
                    .iter()
                    .position(|n| n.output.iter().any(|o| o == "logits"))
                    .unwrap();
                g.node[logits].output[0] = "plain_logits".to_owned();
                g.node.push(new);
                g.node
                    .push(node("Add", "sum", &["plain_logits", "total"], &["logits"]));
            },
            Refused,
        ),
        (
            "the repeated key is an output",
            |g, p| {
                let value = g.node[p.score].input[1].clone();
                let mut info = g.output[0].clone();
                info.name = Some(value);
                g.output.push(info);
            },
            Refused,
        ),
        (
            "the key is rounded to half precision and back",
            |g, p| {
                wrap(g, p.score, 1, "Cast", None, |n| n.with_int("to", 10));
                let at = places(g).score;
                wrap(g, at, 1, "Cast", None, |n| n.with_int("to", 1));
            },
            Refused,
        ),
        (
            "the key is widened to double precision and back",
            |g, p| {
                wrap(g, p.key_concat, 1, "Cast", None, |n| n.with_int("to", 11));
                let at = places(g).key_concat;
                wrap(g, at, 1, "Cast", None, |n| n.with_int("to", 1));
            },
            Exact,
        ),
        (
            "the last key is cut off",
            |g, p| {
                g.initializer.extend([
                    integers("zero", &[0]),
                    integers("end", &[-1]),
                    integers("last", &[3]),
                ]);
                let value = g.node[p.score].input[1].clone();
                let new = node("Slice", "cut", &[&value, "zero", "end", "last"], &["cut"]);
                insert(g, p.score, 1, vec![new], "cut");
            },
            Refused,
        ),
        (
            "the whole key is sliced",
            |g, p| {
                g.initializer.extend([
                    integers("zero", &[0]),
                    integers("end", &[i64::MAX]),
                    integers("last", &[3]),
                ]);
                let value = g.node[p.score].input[1].clone();
                let new = node("Slice", "cut", &[&value, "zero", "end", "last"], &["cut"]);
                insert(g, p.score, 1, vec![new], "cut");
            },
            Exact,
        ),
        (
            "the value is transposed twice",
            |g, p| {
                wrap(g, p.product, 1, "Transpose", None, |n| {
                    n.with_ints("perm", &[0, 1, 3, 2])
                });
                let at = places(g).product;
                wrap(g, at, 1, "Transpose", None, |n| {
                    n.with_ints("perm", &[0, 1, 3, 2])
                });
            },
            Exact,
        ),
        (
            "the key is repeated by Tile in front of the cache's own heads",
            |g, p| {
                let _ = p;
                let at = g
                    .node
                    .iter()
                    .position(|n| n.op_type() == "Unsqueeze" && n.input[0] == "present.0.key")
                    .unwrap();
                let end = g.node[places(g).score].input[1].clone();
                let repeated = g
                    .node
                    .iter()
                    .position(|n| n.op_type() == "Reshape" && n.output[0] == "_unsafe_view")
                    .unwrap();
                assert!(at < repeated && !end.is_empty());
                g.initializer.push(integers("repeats", &[1, 4, 1, 1]));
                g.node[repeated] = node(
                    "Tile",
                    "tiled",
                    &["present.0.key", "repeats"],
                    &["_unsafe_view"],
                );
            },
            Refused,
        ),
    ]
}

#[test]
fn every_deliberate_change_has_its_fate() {
    for (what, change, expected) in mutations() {
        let mut model = base("dynamo18-llama");
        let graph = graph(&mut model);
        // The exporter's shapes would be stale.
        graph.value_info.clear();
        let places = places(graph);
        change(graph, &places);
        assert_eq!(fate(model, what), expected, "{what}");
    }
}

/// A small reproducible generator (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

/// Changes one thing about one random node.
fn random_change(graph: &mut GraphProto, random: &mut Random) -> String {
    graph.value_info.clear();
    let at = random.below(graph.node.len());
    let before = gqa2mla_passes::graph::text::node(&graph.node[at]);
    let kind = random.below(6);
    let node = &mut graph.node[at];
    match kind {
        0 => {
            if let Some(perm) = node.attribute.iter_mut().find(|a| a.ints.len() > 1) {
                let (i, j) = (random.below(perm.ints.len()), random.below(perm.ints.len()));
                perm.ints.swap(i, j);
            }
        }
        1 => {
            if let Some(number) = node
                .attribute
                .iter_mut()
                .find(|a| a.i.is_some() && a.name() != "to")
            {
                number.i = Some(number.i() + random.below(3) as i64 - 1);
            }
        }
        2 => {
            if node.input.len() > 1 {
                let (i, j) = (
                    random.below(node.input.len()),
                    random.below(node.input.len()),
                );
                node.input.swap(i, j);
            }
        }
        3 => {
            let swapped = match node.op_type() {
                "Mul" => "Add",
                "Add" => "Sub",
                "Sub" => "Add",
                "Div" => "Mul",
                "Unsqueeze" => "Squeeze",
                "Identity" => "Neg",
                "Expand" => "Tile",
                "Cos" => "Sin",
                other => other,
            };
            node.op_type = Some(swapped.to_owned());
        }
        4 => {
            let constants: Vec<usize> = (0..graph.initializer.len())
                .filter(|&i| graph.initializer[i].data_type() == DataType::Int64 as i32)
                .collect();
            let which = random.below(constants.len());
            if let Some(raw) = constants
                .get(which)
                .and_then(|&i| graph.initializer[i].raw_data.as_mut())
                && raw.len() >= 8
            {
                let mut bytes = raw.to_vec();
                bytes[0] = bytes[0].wrapping_add(random.below(5) as u8).wrapping_sub(2);
                *raw = bytes.into();
            }
        }
        _ => {
            // Another value of the graph in place of an input.
            let other = random.below(at.max(1));
            let value = graph.node[other].output[0].clone();
            let node = &mut graph.node[at];
            if !node.input.is_empty() {
                let i = random.below(node.input.len());
                node.input[i] = value;
            }
        }
    }
    format!(
        "{before}  became  {}",
        gqa2mla_passes::graph::text::node(&graph.node[at])
    )
}

#[test]
fn random_changes_never_give_a_silent_wrong_answer() {
    let mut fates: BTreeMap<Fate, usize> = BTreeMap::new();
    for name in BASES {
        for seed in 0..120 {
            let mut random = Random(seed * 7919 + name.len() as u64);
            let mut model = base(name);
            let what = random_change(graph(&mut model), &mut random);
            *fates
                .entry(fate(model, &format!("{name}, seed {seed}: {what}")))
                .or_default() += 1;
        }
    }
    eprintln!("{fates:?}");
    // The test would show nothing if every change were harmless, or every one broke the model.
    assert!(
        fates.get(&Fate::Refused).is_some_and(|&n| n >= 20),
        "{fates:?}"
    );
    assert!(
        fates.get(&Fate::Exact).is_some_and(|&n| n >= 20),
        "{fates:?}"
    );
}
