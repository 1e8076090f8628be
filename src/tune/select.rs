//! Selection of the initializers to train.

use std::collections::BTreeSet;

use gqa2mla_passes::graph::{Graph, is_op};
use gqa2mla_passes::onnx::{GraphProto, tensor_proto::DataType};

/// The element types of weights that can be trained.
const FLOATS: [DataType; 3] = [DataType::Float, DataType::Float16, DataType::Bfloat16];

/// The part of a model that is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trainable {
    /// The factors of a rewritten model: w_dk, w_uk, w_dv, w_uv, their folded forms and the biases.
    Factors,
    /// W_K and W_V, and the factors, if there are any.
    KeysAndValues,
    /// The weights of all products except those of the logits, and the factors, if there are any.
    Layers,
}

/// The change of a weight of the original in a step, relative to that of a factor, if all layers are trained. Measured for
/// half of the rank: a tenth and a fifth lose as little, three fifths nearly twice as much.
const SHARE_OF_WEIGHTS: f64 = 0.1;

impl Trainable {
    /// The change of the initializer `name` in a step, relative to that of a factor.
    #[must_use]
    pub fn share(self, name: &str) -> f64 {
        match self == Self::Layers && !is_factor(name) {
            true => SHARE_OF_WEIGHTS,
            false => 1.0,
        }
    }
}

/// The last parts of the names of factors; the part before is `mla`, with a number if a model was rewritten repeatedly.
const FACTORS: [&str; 10] = [
    "w_dk", "w_uk", "w_dv", "w_uv", "w_ak", "w_av", "b_ak", "b_av", "b_k", "b_v",
];

/// Whether `name` is that of a factor of a rewrite: `<old name>/mla/w_uk`.
#[must_use]
pub fn is_factor(name: &str) -> bool {
    let mut parts = name.rsplit('/');
    let (last, before) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let number = before.strip_prefix("mla");
    FACTORS.contains(&last) && number.is_some_and(|n| n.chars().all(|c| c.is_ascii_digit()))
}

/// Whether the initializers `trained` are factors that hold no weight of the original.
#[must_use]
pub fn are_factors_alone(trained: &[String]) -> bool {
    let folded = |name: &str| name.ends_with("/w_ak") || name.ends_with("/w_av");
    trained.iter().all(|name| is_factor(name) && !folded(name))
}

/// The factors among the initializers of `graph`, in graph order.
#[must_use]
pub fn factors(graph: &GraphProto) -> Vec<String> {
    let names = graph.initializer.iter().map(|t| t.name());
    names
        .filter(|name| is_factor(name))
        .map(str::to_owned)
        .collect()
}

/// The initializers of `graph` that `what` selects, in graph order. `sources` are the new keys and values of attentions
/// that are not rewritten; `logits` is the output of this name.
#[must_use]
pub fn select(
    graph: &GraphProto,
    sources: &[String],
    logits: &str,
    what: Trainable,
) -> Vec<String> {
    let mut chosen: BTreeSet<String> = factors(graph).into_iter().collect();
    let view = Graph::new(graph);
    if what == Trainable::Layers {
        let of_logits = projections(&view, logits);
        let weights = product_weights(&view);
        chosen.extend(weights.filter(|weight| !of_logits.contains(weight)));
    }
    if what == Trainable::KeysAndValues {
        let mut starts = sources.to_vec();
        starts.extend(latent_rows(&chosen));
        for node in &graph.node {
            let down = |weight: &String| weight.ends_with("/w_dk") || weight.ends_with("/w_dv");
            if node.input.get(1).is_some_and(|w| is_factor(w) && down(w)) {
                starts.extend(node.input.first().cloned());
            }
        }
        chosen.extend(starts.iter().flat_map(|start| projections(&view, start)));
    }
    let all = graph.initializer.iter().map(|t| t.name());
    all.filter(|name| chosen.contains(*name))
        .map(str::to_owned)
        .collect()
}

/// The stored matrices that products multiply by, unless another operator reads them too, as `Gather` reads embeddings.
/// Constants that all rewritten layers share are no weights; their names begin with `mla/`.
fn product_weights(graph: &Graph) -> impl Iterator<Item = String> {
    let products = graph
        .nodes()
        .filter(|(_, node)| is_op(node, "MatMul") || is_op(node, "Gemm"));
    products.filter_map(|(_, node)| {
        let stored = graph.initializer(graph.resolve(node.input.get(1)?))?;
        let uses = graph.uses(stored.name()).iter();
        let mut readers = uses.filter_map(|usage| graph.node(usage.node));
        let alone = readers.all(|reader| is_op(reader, "MatMul") || is_op(reader, "Gemm"));
        let floats = FLOATS
            .iter()
            .any(|&float| float as i32 == stored.data_type());
        let matrix = stored.dims.iter().filter(|&&size| size > 1).count() == 2;
        let of_all_layers = stored.name().starts_with("mla/");
        (alone && floats && matrix && !of_all_layers).then(|| stored.name().to_owned())
    })
}

/// The names of the new latent rows of the attentions with the up-projections among `factors`. At full rank they are the
/// keys and values themselves, without a product with w_dk or w_dv.
fn latent_rows(factors: &BTreeSet<String>) -> impl Iterator<Item = String> {
    let sides = [("w_uk", ["k_B1Tr", "k_BTr"]), ("w_uv", ["v_B1Tr", "v_BTr"])];
    factors.iter().flat_map(move |factor| {
        let found = sides
            .iter()
            .find_map(|(up, rows)| Some((factor.strip_suffix(up)?, rows)));
        let names = found.map(|(of, rows)| rows.map(|rows| format!("{of}{rows}")));
        names.into_iter().flatten()
    })
}

/// The weights of the last products from which `value` is computed, and the biases that are added to these products.
fn projections(graph: &Graph, value: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if !seen.insert(value) {
            continue;
        }
        let Some((_, node)) = graph.producer(value) else {
            continue;
        };
        let stored = |name: &str| {
            graph
                .initializer(graph.resolve(name))
                .map(|t| t.name().to_owned())
        };
        if is_op(node, "MatMul") || is_op(node, "Gemm") {
            found.extend(node.input.iter().skip(1).filter_map(|w| stored(w)));
            continue;
        }
        if is_op(node, "Add") {
            let behind_product = |other: &String| {
                let maker = graph.producer(other).map(|(_, n)| n);
                maker.is_some_and(|n| is_op(n, "MatMul"))
            };
            if node.input.iter().any(behind_product) {
                found.extend(node.input.iter().filter_map(|b| stored(b)));
            }
        }
        let passes = [
            "Identity",
            "Reshape",
            "Transpose",
            "Unsqueeze",
            "Squeeze",
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Neg",
            "Concat",
            "Slice",
            "Split",
            "Cast",
            "QuantizeLinear",
            "DequantizeLinear",
            "Round",
            "Clip",
            "RotaryEmbedding",
            "RMSNormalization",
            "SimplifiedLayerNormalization",
        ];
        if passes.contains(&node.op_type()) {
            open.extend(node.input.iter().map(String::as_str));
        }
    }
    found
}
